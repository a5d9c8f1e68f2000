"""Archives and arrays of a few megabytes that would unpack to gigabytes, or say so: refused in little memory."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.support.measured import variegate
from tests.support.small_campaign import write_inputs
from variegate.export.intake.archive import rebuilt
from variegate.export.intake.guard import Limits
from variegate.keys.arrays import read_npy, read_npz
from variegate.keys.errors import Refusal, RefusedError

_LITTLE = 1 << 30
_PIECE = 16 << 20


def _header(shape: tuple[int, ...]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return out.getvalue()


def _zipped(path: Path, members: dict[str, tuple[bytes, int]], *, said: int | None = None) -> None:
    """An archive whose members are a start and zeros, so many pieces of them; it may say that they are less.

    Deflate's stream of one piece serves for all, so that this takes no time.
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(bytes(_PIECE)) + packer.flush(zlib.Z_FULL_FLUSH)
    with path.open("wb") as file:
        listed = b""
        for name, (start, pieces) in members.items():
            first = zlib.compressobj(9, zlib.DEFLATED, -15)
            data = first.compress(start) + first.flush(zlib.Z_FULL_FLUSH) + piece * pieces + b"\x03\x00"
            size = min(said or len(start) + pieces * _PIECE, 0xFFFFFFFE)
            about = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0, 0, len(data), size, len(name), 0)
            at = file.tell()
            file.write(b"PK\x03\x04" + about + name.encode() + data)
            listed += b"PK\x01\x02" + struct.pack("<H", 20) + about + struct.pack("<HHHII", 0, 0, 0, 0, at)
            listed += name.encode()
        at = file.tell()
        count = len(members)
        file.write(listed + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, count, count, len(listed), at, 0))


def test_images_that_unpack_to_gigabytes_are_refused_in_little_memory(tmp_path: Path) -> None:
    base = write_inputs(tmp_path).with_name("a.onnx")
    bomb = tmp_path / "bomb.npz"
    x = (_header((3 << 20, 1, 32, 32)), 192)
    _zipped(bomb, {"x.npy": x, "y.npy": (_header((_PIECE * 80,)), 80)})
    assert bomb.stat().st_size < 8 << 20
    prepare = ("export", "prepare", base, "--validation", bomb, "--out", tmp_path / "release")
    for words in (prepare, ("attack", "try", "device:none", "--images", bomb)):
        found = variegate(*words)
        assert (found.status, found.out) == (1, "")
        assert f"{bomb} unpacks to more than" in found.err
        assert found.peak < _LITTLE
    assert not (tmp_path / "release").exists()


def test_an_archive_that_says_it_is_less_is_read_no_further(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.npz"
    for shape in ((1000,), (3 << 30,)):
        _zipped(bomb, {"x.npy": (_header(shape), 192)}, said=2000)
        with pytest.raises(RefusedError, match=r"is not an .npz file with x") as caught:
            read_npz(bomb.read_bytes(), ("x",), "it", limit=1 << 20)
        assert caught.value.refusal is Refusal.MALFORMED


@pytest.mark.parametrize("shape", [(1 << 40,), (1 << 62, 1 << 62), (11,)])
def test_an_array_that_promises_more_than_there_is_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(RefusedError, match="it is not a numpy array of numbers") as caught:
        read_npy(_header(shape) + bytes(10), "it")
    assert caught.value.refusal is Refusal.INPUT
    assert read_npy(_header((2, 5)) + bytes(10), "it").shape == (2, 5)


def test_damaged_arrays_are_refused_and_nothing_else_comes_of_them() -> None:
    out, rng, refused = io.BytesIO(), np.random.default_rng(2), 0
    np.save(out, np.arange(20, dtype=np.float32).reshape(4, 5))
    for _ in range(500):
        data = bytearray(out.getvalue())
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(128)] = rng.integers(256)
        try:
            read_npy(bytes(data), "it")
        except RefusedError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_are_packed_as_their_writers_do(method: int) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("x.npy", _header((3,)) + b"abc")
        archive.writestr("archive/models/model.json", "{}")
    with pytest.raises(RefusedError, match=r"is not an .npz file"):
        read_npz(out.getvalue(), ("x",), "it", limit=1 << 20)
    with pytest.raises(RefusedError, match=r"packed as torch.export.save does not"):
        rebuilt(out.getvalue(), Limits())


def test_descriptions_of_an_archive_are_bounded() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/models/model.json", json.dumps([[]] * (12 << 20)))
    assert len(out.getvalue()) < 1 << 20
    with pytest.raises(RefusedError, match="descriptions have more than") as caught:
        rebuilt(out.getvalue(), Limits())
    assert caught.value.refusal is Refusal.TOO_LARGE
