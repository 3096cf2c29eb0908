"""What a conversion asks of a kind of data set: which files it has, and which clips are in each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from .digits import Split

Frame = npt.NDArray[np.uint8]  # (H, W, C)


class BadSource(ValueError):  # noqa: N818 (it says what is the matter)
    """A file that cannot be used; the message says why. It is named, counted and left out."""


class Source(NamedTuple):
    """A file, a folder of frames, or a part of a file; converted whole or left out whole."""

    name: str  # relative to the folder that was given, with slashes; unique in the data set
    path: Path
    split: Split
    n_bytes: int
    modified: int  # ns; with n_bytes it tells whether a source has changed since


class LeftOut(NamedTuple):
    """What did not come into the shards, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class RawClip:
    """A clip of a source, not yet stored.

    frames: T times (H, W, C) uint8, all of one shape; may be read only once, while the source is open.
    first: number of the first frame in the source, from 0.
    arrays: what goes with the frames, such as actions (T, 4) float32; names of letters, digits and underscores.
    note: what a reader of the manifest should know, such as a range that was cut.
    """

    frames: Iterable[Frame]
    first: int = 0
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    note: str = ""


class Recipe(Protocol):
    """How one kind of data set is read; picklable, since worker processes use it."""

    @property
    def kind(self) -> str:
        """kth, bair or videos."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every frame."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that the clips depend on beside the sources, in JSON's types: sizes, how frames are resized and split."""

    def sources(self) -> tuple[list[Source], list[LeftOut]]:
        """The sources in a fixed order, and what was found but cannot be one.

        Raises FileNotFoundError or ValueError where there are none, OSError for a folder that cannot be read.
        """

    def clips(self, source: Source) -> Iterator[RawClip]:
        """The clips of a source; raises BadSource, also after some clips: then none of them is kept."""


def printable(text: str, longest: int = 300) -> str:
    r"""Text that neither a terminal nor UTF-8 stumbles over: anything else as its escape, such as \x1b or \udcff."""
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
