"""A recipe of text files that tell a conversion what to do; run as a program it is svg-fast with `convert toys`.

Each line of a file `train/a.toy` is a step: `clip 3` gives a clip of 3 frames, `sleep 0.1` takes its time, and what
stands for something bad happens in the worker: `bad why`, `die`, `defect`, `full` (no file may grow any more).
"""

from __future__ import annotations

import os
import resource
import shutil
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from svg_fast.data.recipe import BadSource, Frame, LeftOut, RawClip, Source

SHAPE = (4, 6, 3)


@dataclass(frozen=True)
class ToyRecipe:
    folder: Path
    weight: int = 2**20  # bytes that a byte of a file stands for
    title: str = "toy"
    kind: str = "toys"
    shape: tuple[int, int, int] = SHAPE

    @property
    def settings(self) -> dict[str, Any]:
        return {"title": self.title}

    def sources(self) -> tuple[list[Source], list[LeftOut]]:
        found = []
        for split in ("train", "test"):
            for path in sorted((self.folder / split).glob("*.toy")):
                status = path.stat()
                name = path.relative_to(self.folder).as_posix()
                found.append(Source(name, path, split, status.st_size * self.weight, status.st_mtime_ns))
        if not found:
            raise FileNotFoundError(f"no toys in {self.folder}")
        return found, [LeftOut(path.name, "not a toy") for path in sorted(self.folder.glob("*.txt"))]

    def clips(self, source: Source) -> Iterator[RawClip]:
        first = 0
        for step in source.path.read_text().splitlines():
            what, _, how = step.partition(" ")
            if what == "clip":
                frames = toy_frames(source.name, first, int(how))
                yield RawClip(frames, first, {"index": np.arange(first, first + int(how))}, "cut" if first else "")
                first += int(how)
            else:
                misfortune(what, how)


def toy_frames(name: str, first: int, n_frames: int) -> list[Frame]:
    seed = zlib.crc32(os.fsencode(name))
    return [np.random.default_rng((seed, k)).integers(0, 256, SHAPE, np.uint8) for k in range(first, first + n_frames)]


def misfortune(what: str, how: str) -> None:
    if what == "sleep":
        time.sleep(float(how))
    elif what == "bad":
        raise BadSource(how)
    elif what == "die":
        os.kill(os.getpid(), int(how))
    elif what == "defect":
        raise Untransportable("wire", "cut")
    elif what == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(how), resource.RLIM_INFINITY))  # Python ignores SIGXFSZ
    else:
        raise AssertionError(what)


class Untransportable(Exception):  # noqa: N818
    """An error that does not survive pickle."""

    def __init__(self, what: str, how: str) -> None:
        super().__init__(f"the {what} is {how}")


def write_toys(folder: Path, toys: dict[str, str]) -> Path:
    for name, steps in toys.items():
        path = folder / f"{name}.toy"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(steps)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def undisturbed(source: Path) -> dict[str, bytes]:
    """What a conversion of `source` writes into a new folder."""
    from svg_fast.data.convert import convert

    folder = source.parent / "undisturbed"
    convert(ToyRecipe(source), folder, workers=2)
    found = contents(folder)
    shutil.rmtree(folder)
    return found


def toys_command() -> click.Command:
    """`svg-fast data convert toys`."""
    from svg_fast.cli.data import conversion, convert_with

    @click.command("toys")
    @conversion
    def toys(source: Path, dest: Path, size: int, workers: int | None) -> None:
        convert_with(ToyRecipe(source), source, dest, workers, "kth-lp")

    return toys


def main() -> None:
    from svg_fast import cli
    from svg_fast.cli.data import convert_group

    convert_group.add_command(toys_command())
    cli.run()


if __name__ == "__main__":
    main()
