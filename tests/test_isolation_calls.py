"""The filter of system calls: what serving needs passes, what libraries try fails, everything else ends the process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from tests.support.children import Zygote

SIGSYS = -signal.SIGSYS


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as started:
        yield started


def test_harmless_attempts_fail_as_errors(zygote: Zygote) -> None:
    said, status = zygote.run(
        """
        lock_down(ram_mib=1024, stage=Stage.SERVE)
        say([tried(*attempt) for attempt in (
            (open, "/etc/passwd"), (os.stat, "/"), (os.readlink, "/proc/self/exe"), (os.getcwd,), (os.uname,),
            (socket.socket,), (os.write, 5, b"x"), (os.read, 0, 1), (os.pipe,),
            (resource.prlimit, 0, resource.RLIMIT_CORE, (0, 0)), (os.sched_getaffinity, 0),
        )])
        """
    )
    assert status == 0
    assert isinstance(said, list)
    assert said == ["EPERM"] * len(said)


FORBIDDEN = {
    "execute": "os.execv('/bin/true', ['true'])",
    "thread": "threading.Thread(target=print).start()",
    "vfork": "syscalls._libc.vfork()",
    "executable memory": "libc.mmap(None, 4096, 5, 0x22, -1, 0)",
    "memory made executable": "libc.mprotect(ctypes.c_void_p(own), 4096, 5)",
    "shared memory": "mmap.mmap(-1, 4096)",
    "memory of a file": "libc.mmap(None, 4096, 3, 2, file, 0)",
    "memory file": "os.memfd_create('x')",
    "secret memory": "syscalls.syscall(447, 0)",
    "ptrace": "syscalls.ptrace(0x4206, parent)",
    "read of others": "syscalls.syscall(270 if machine == 'aarch64' else 310, parent, 0, 0, 0, 0, 0)",
    "descriptor of others": "syscalls.syscall(438, 0, 0, 0)",
    "io_uring": "syscalls.syscall(425, 1, 0)",
    "signal to others": "os.kill(parent, 0)",
    "prctl": "syscalls.prctl(4, 1)",
    "another landlock": "landlock.version()",
    "namespace": "syscalls.syscall(97 if machine == 'aarch64' else 272, 0)",
    "listener": "syscalls.syscall(277 if machine == 'aarch64' else 317, 1, 8, 0)",
    "unknown call": "syscalls.syscall(4095)",
}
SETTING = """
machine = os.uname().machine
own = syscalls.mmap_shared(4096, flags=mmap.MAP_ANONYMOUS)
file = os.memfd_create("x")
os.ftruncate(file, 4096)
parent = os.getppid()
"""


@pytest.mark.parametrize("stage", ["LOAD", "SERVE"])
def test_anything_else_ends_the_process(zygote: Zygote, stage: str) -> None:
    wrong = {}
    for name, code in FORBIDDEN.items():
        child = zygote.start(f"{SETTING}\nlock_down(ram_mib=1024, stage=Stage.{stage})\nsay(1)\n{code}\nsay(2)")
        assert child.hear() == 1
        if (status := child.ended()) != SIGSYS:
            wrong[name] = status
    assert not wrong


def test_what_is_forbidden_works_before(zygote: Zygote) -> None:
    """The control: the calls above end a process because of the filter."""
    left_out = {"execute", "thread", "vfork"}  # which do not come back as they went
    for name, code in FORBIDDEN.items():
        if name not in left_out:
            said, status = zygote.run(f"{SETTING}\ntried(lambda: {code})\nsay(2)")
            assert (said, status) == (2, 0), name


def test_a_loader_may_be_forked_and_then_no_more(zygote: Zygote) -> None:
    child = zygote.start(
        """
        lock_down(ram_mib=1024)
        pid = os.fork()
        if pid == 0:
            os._exit(7)
        say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        say(plain([filter_calls(Stage.SERVE)])[0])
        os.fork()
        """
    )
    assert child.hear() == 7
    assert child.hear() == ["seccomp", "on", "allow-list of stage 'serve'; other calls end the process"]
    assert child.ended() == SIGSYS


def test_abort_of_itself_still_aborts(zygote: Zygote) -> None:
    child = zygote.start("lock_down(ram_mib=1024, stage=Stage.SERVE)\nos.abort()")
    assert child.ended() == -signal.SIGABRT


def convolution() -> bytes:
    """A convolution whose kernel is supplied from outside."""
    kernel = onnx.TensorProto(
        name="k", data_type=TensorProto.FLOAT, dims=(8, 3, 3, 3), data_location=TensorProto.EXTERNAL
    )
    kernel.external_data.extend([onnx.StringStringEntryProto(key="location", value="k")])
    kernel.external_data.extend([onnx.StringStringEntryProto(key="length", value=str(8 * 27 * 4))])
    nodes = [
        helper.make_node("Conv", ["image", "k"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("ArgMax", ["f"], ["label"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("label", TensorProto.INT64, ["n"])],
        [kernel],
    )
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])
    return bytes(model.SerializeToString())


def test_onnxruntime_serves_under_the_final_lockdown(zygote: Zygote, tmp_path: Path) -> None:
    """Frames in a shared memory file, weights in secret pages filled by a fork, labels over the inherited socket."""
    (tmp_path / "m.onnx").write_bytes(convolution())
    said, status = zygote.run(
        f"""
        model = open({str(tmp_path / "m.onnx")!r}, "rb").read()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.settimeout(30)
        file = os.memfd_create("frames")
        os.ftruncate(file, 64 * 3 * 32 * 32 * 4)
        frames = np.frombuffer(mmap.mmap(file, 0), np.float32).reshape(64, 3, 32, 32)
        region = SecretRegion(8 * 27 * 4)
        kernel = np.frombuffer(region.view, np.float32).reshape(8, 3, 3, 3)
        frames[:] = np.random.default_rng(1).random(frames.shape, np.float32)
        frames *= np.random.default_rng(3).normal(size=(64, 3, 1, 1)).astype(np.float32)

        def session():
            options = ort.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.add_external_initializers(["k"], [ort.OrtValue.ortvalue_from_numpy(kernel)])
            return ort.InferenceSession(model, options, ["CPUExecutionProvider"])

        if os.fork() == 0:
            protections = lock_down(ram_mib=512)
            if os.fork() == 0:
                kernel[:] = np.random.default_rng(2).normal(size=kernel.shape)
                os._exit(0)
            os.wait()
            filter_calls(Stage.SERVE)
            network = session()
            packet = bytearray(64)
            while True:
                theirs.recv_into(packet)
                labels = network.run(None, {{"image": frames[: packet[0]]}})[0]
                theirs.send(labels.tobytes())
        theirs.close()
        answers = []
        for batch in (1, 7, 64, 1):
            ours.send(bytes([batch]))
            answers.append(ours.recv(1024))
        # The same pages, read here: the loader has filled them.
        network = session()
        same = [network.run(None, {{"image": frames[:n]}})[0].tobytes() == a for n, a in zip((1, 7, 64, 1), answers)]
        ours.close()
        say(same, len(set(np.frombuffer(answers[2], np.int64).tolist())) > 1, bool(kernel.any()))
        """
    )
    assert (said, status) == ([[True] * 4, True, True], 0)
