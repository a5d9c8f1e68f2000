"""What a locked-down process can no longer do: real processes, each finding with its control."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.children import Zygote
from variegate.isolation import landlock, lockdown
from variegate.isolation.syscalls import name_of

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: acts as two users")


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as started:
        yield started


def test_everything_is_on_and_reported_in_order(zygote: Zygote) -> None:
    said, status = zygote.run("say(plain(lock_down(ram_mib=1024)))")
    assert status == 0
    assert isinstance(said, list)
    assert [name for name, _, _ in said] == list(lockdown.NAMES)
    assert {state for _, state, _ in said} == {"on"}, said


def test_debug_and_no_cap_are_reported_off(zygote: Zygote) -> None:
    said, _ = zygote.run("say(plain(lock_down(ram_mib=None, debug=True)))")
    assert isinstance(said, list)
    assert {name for name, state, _ in said if state == "off"} == {"ram-cap", "dumpable"}


def test_a_second_thread_is_refused(zygote: Zygote) -> None:
    said, _ = zygote.run(
        """
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        try:
            lock_down(ram_mib=1024)
        except MisuseError as error:
            say(error.message)
        """
    )
    assert said == "a process locks itself down while it has one thread, not 2"


def test_landlock_alone_denies_files_ports_and_abstract_sockets(zygote: Zygote) -> None:
    said, _ = zygote.run(
        """
        server = socket.create_server(("127.0.0.1", 0))
        abstract = socket.socket(socket.AF_UNIX)
        abstract.bind(b"\\0variegate-%d" % os.getpid())
        abstract.listen()
        attempts = (
            lambda: open("/etc/passwd").close(),
            lambda: open("/dev/null", "w").close(),
            lambda: os.listdir("/"),
            lambda: os.mkdir("/tmp/variegate-%d" % os.getpid()),
            lambda: socket.create_connection(server.getsockname()).close(),
            lambda: socket.create_server(("127.0.0.1", 0)).close(),
            lambda: socket.socket(socket.AF_UNIX).connect(abstract.getsockname()),
            lambda: os.kill(os.getppid(), 0),
        )
        before = [tried(attempt) for attempt in attempts]
        os.rmdir("/tmp/variegate-%d" % os.getpid())
        os.set_blocking(abstract.fileno(), False)
        lockdown.no_new_privs()
        protection = landlock.deny_all()
        # Made within the domain, it stays in reach; what others made does not.
        say(before, plain([protection])[0], [tried(attempt) for attempt in attempts], landlock.version())
        """
    )
    assert isinstance(said, list)
    before, (_, state, _), after, version = said
    assert before == [None] * 8
    assert state == "on"
    assert after[:4] == ["EACCES"] * 4
    if version >= 4:
        assert after[4:6] == ["EACCES"] * 2
    if version >= 6:
        assert after[6:] == ["EPERM"] * 2


@pytest.mark.parametrize(("known", "fs"), [(1, 13), (2, 14), (3, 15), (4, 15), (5, 16), (6, 16), (9, 16)])
def test_older_landlocks_are_asked_for_what_they_know(known: int, fs: int) -> None:
    words = landlock.ruleset(known)
    assert int.from_bytes(words[:8], "little") == (1 << fs) - 1
    assert (words[8], words[16]) == (3 if known >= 4 else 0, 3 if known >= 6 else 0)


def test_writable_memory_never_becomes_executable(zygote: Zygote) -> None:
    said, _ = zygote.run(
        """
        libc.mmap.restype = ctypes.c_void_p
        def attempts():
            both = libc.mmap(None, 4096, 7, 0x22, -1, 0)
            page = libc.mmap(None, 4096, 3, 0x22, -1, 0)
            return [both != ctypes.c_void_p(-1).value, libc.mprotect(ctypes.c_void_p(page), 4096, 5) == 0]
        before = attempts()
        say(before, plain([lockdown.refuse_exec_gain()])[0][1], attempts(), errno.errorcode[ctypes.get_errno()])
        """
    )
    assert said == [[True, True], "on", [False, False], "EACCES"]


def test_a_page_that_is_writable_code_already_is_told(zygote: Zygote) -> None:
    said, _ = zygote.run("libc.mmap(None, 4096, 7, 0x22, -1, 0)\nsay(plain(lock_down(ram_mib=1024)))")
    assert isinstance(said, list)
    assert ["mdwe", "off", "set, but a page was writable and executable before"] in said


@needs_root
def test_its_own_user_cannot_look_in(zygote: Zygote) -> None:
    target = zygote.start(
        """
        kept = ctypes.create_string_buffer(b"seen from outside")
        become_nobody()
        say(ctypes.addressof(kept))
        wait()
        say(plain([lockdown.undumpable()])[0][1])
        wait()
        """
    )
    address = target.hear()
    look = f"""
        become_nobody()
        def look():
            with open("/proc/{target.pid}/mem", "rb", buffering=0) as memory:
                memory.seek({address})
                say(memory.read(17).decode())
        say(tried(look), tried(os.listdir, "/proc/{target.pid}/fd"))
        """
    seen = zygote.start(look)
    assert [seen.hear(), seen.hear()] == ["seen from outside", [None, None]]
    target.tell()
    assert target.hear() == "on"
    assert zygote.run(look) == (["EACCES", "EACCES"], 0)
    target.tell()
    assert target.ended() == 0


def cores(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.stat().st_size > 0]


@pytest.mark.skipif(
    Path("/proc/sys/kernel/core_pattern").read_text().startswith(("|", "/")), reason="core files go elsewhere"
)
@pytest.mark.parametrize("end", ["SIGSEGV", "SIGABRT"])
@pytest.mark.parametrize("how", ["nothing", "undumpable", "all"])
def test_no_core_file(zygote: Zygote, tmp_path: Path, end: str, how: str) -> None:
    if resource.getrlimit(resource.RLIMIT_CORE)[1] != resource.RLIM_INFINITY:
        pytest.skip("the hard limit forbids core files")
    done = {"nothing": "", "undumpable": "lockdown.undumpable()", "all": "lock_down(ram_mib=1024)"}[how]
    fault = "os.abort()" if end == "SIGABRT" else "ctypes.string_at(0)"
    child = zygote.start(
        f"""
        os.chdir({str(tmp_path)!r})
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)
        secret, ordinary = SecretRegion(4096), pages.SecretRegion(4096, secret=False)
        ordinary_bytes = bytearray(b"5" * 32)
        for i in range(32):  # byte by byte: no copy is left in the heap
            secret.view[i], ordinary.view[i] = 255 - i, 254 - 2 * i
        {done}
        {fault}
        """
    )
    assert child.ended() == -signal.Signals[end]
    found = cores(tmp_path)
    if how == "nothing":
        assert len(found) == 1
        core = found[0].read_bytes()
        assert b"5" * 32 in core
        assert bytes(255 - i for i in range(32)) not in core
        assert bytes(254 - 2 * i for i in range(32)) not in core
        found[0].unlink()
    else:
        assert not found


def test_memory_beyond_the_cap_is_a_memory_error(zygote: Zygote) -> None:
    said, status = zygote.run(
        """
        half = np.ones(1 << 27, np.uint8)
        del half
        lock_down(ram_mib=256)
        small = bytearray(32 << 20)
        failed = 0
        for make in (lambda: np.ones(1 << 28, np.uint8), lambda: bytearray(1 << 28), lambda: [0] * (1 << 26)):
            try:
                make()
            except MemoryError:
                failed += 1
        say(failed, len(bytearray(32 << 20)))
        """
    )
    assert (said, status) == ([3, 32 << 20], 0)


def test_many_small_pieces_meet_the_cap_too(zygote: Zygote) -> None:
    said, _ = zygote.run(
        """
        lock_down(ram_mib=256)
        held = []
        try:
            while len(held) < 10_000:
                held.append(os.urandom(100_000))
        except MemoryError:
            taken = len(held) * 100_000
            held.clear()
            say(taken)
        """
    )
    assert isinstance(said, int)
    assert 32 << 20 < said < 256 << 20


def test_a_cap_below_what_is_taken_already_is_an_error(zygote: Zygote) -> None:
    said, _ = zygote.run(
        """
        try:
            lock_down(ram_mib=16)
        except DeviceError as error:
            say(error.message)
        """
    )
    assert isinstance(said, str)
    assert said.startswith("the enclave takes ")
    assert said.endswith(" MiB before it loads a copy, its cap is 16 MiB")


def test_limits_and_rights_are_gone_for_good(zygote: Zygote, tmp_path: Path) -> None:
    said, _ = zygote.run(
        f"""
        file = os.open({str(tmp_path / "x")!r}, os.O_CREAT | os.O_WRONLY)
        descriptors = [tried(os.pipe) for _ in range(20)]
        lockdown.limit_resources()
        protection = lockdown.drop_capabilities()
        say(tried(os.write, file, b"x"), tried(os.pipe), plain([protection])[0][1],
            [resource.getrlimit(limit) for limit in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE)],
            tried(os.setuid, 12345), syscalls.prctl(39))
        """
    )
    assert said == ["EFBIG", "EMFILE", "on", [[0, 0], [16, 16]], "EPERM", 0]


@needs_root
def test_no_capability_is_left(zygote: Zygote) -> None:
    said, _ = zygote.run(
        """
        status = open("/proc/self/status")
        sets = lambda: [line.split()[1] for line in (status.seek(0), status.readlines())[1] if line.startswith("Cap")]
        before = sets()
        lockdown.drop_capabilities()
        say(before, sets())
        """
    )
    assert isinstance(said, list)
    before, after = said
    assert int(before[2], 16) != 0
    assert [int(held, 16) for held in after] == [0] * 5


ABSENT = {
    "seccomp": ("lock_down(ram_mib=1024, library='libabsent.so.9')", "libabsent.so.9 is not there or lacks a function"),
    "landlock": ("lock_down(ram_mib=1024)", "this kernel answers ENOSYS"),
    "mdwe": ("lock_down(ram_mib=1024)", "this kernel answers EINVAL"),
}


@pytest.mark.parametrize("name", ABSENT)
def test_what_the_machine_lacks_is_told(zygote: Zygote, name: str) -> None:
    """An older kernel is a filter that gives that kernel's answers."""
    code, reason = ABSENT[name]
    said, _ = zygote.run(
        f"""
        lockdown.no_new_privs()
        older = Filter(ALLOW)
        if {name!r} == "landlock":
            older.rule(fails_with(errno.ENOSYS), ["landlock_create_ruleset"])
        if {name!r} == "mdwe":
            older.rule(fails_with(errno.EINVAL), ["prctl"], Where(0, Compare.EQUAL, 65))
        older.load()
        say(plain({code}))
        """
    )
    assert isinstance(said, list)
    assert [entry for entry in said if entry[1] != "on"] == [[name, "unavailable", reason]]


def test_error_names_are_those_of_the_system() -> None:
    assert name_of(OSError(errno.EPERM, "x")) == "EPERM"
    assert name_of(OSError()) == "an unknown error"
