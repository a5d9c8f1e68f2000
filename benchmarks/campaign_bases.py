"""Writes the bases of the committed campaigns as ONNX files.

    python -m benchmarks.campaign_bases --out FOLDER

The campaigns of `benchmarks/configs` name them `bases/<network>.onnx`, relative to the campaign's file; to run one with
`variegate attack run`, write them beside it. They are made from the zoo and are not committed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from testbed.subjects import CIFAR10_BASES, GTSRB_TINY
from variegate.keys.files import PUBLIC, write_atomic


def write_bases(folder: Path) -> list[Path]:
    """Writes every base that a committed campaign names; the files, in a folder that is made."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for subject in (*GTSRB_TINY, *CIFAR10_BASES):
        path = folder / f"{subject.network}.onnx"
        write_atomic(path, subject.base.model.SerializeToString(deterministic=True), mode=PUBLIC, overwrite=True)
        paths.append(path)
    return paths


def main() -> None:
    """Writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder")
    for path in write_bases(parser.parse_args().out):
        print(path)


if __name__ == "__main__":
    main()
