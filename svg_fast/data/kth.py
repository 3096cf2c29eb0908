"""A recipe for the KTH actions: AVI files, and the list of the frames in which a person is in view."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .digits import Split
from .frames import files_below
from .recipe import BadSource, Frame, LeftOut, RawClip, Source
from .video import decode

ACTIONS = ("boxing", "handclapping", "handwaving", "jogging", "running", "walking")
SEQUENCES = "00sequences.txt"
TEST_PEOPLE = range(21, 26)  # of 1 to 25
# The last range of KTH's list ends at 1,492; the limit bounds the memory of one video.
MAX_FRAME = 10_000
_MAX_BYTES = 2**20  # of the list; KTH's has 37,485

_VIDEO = rf"person(?P<person>0[1-9]|1\d|2[0-5])_(?P<action>{'|'.join(ACTIONS)})_d[1-4]"
_NAME = re.compile(rf"(?P<video>{_VIDEO})_uncomp\.(?i:avi)", re.ASCII)
_LINE = re.compile(rf"(?P<video>{_VIDEO})\s+(?:\*missing\*|frames\s+(?P<ranges>\d+-\d+(?:\s*,\s*\d+-\d+)*))", re.ASCII)


@dataclass(frozen=True)
class KthRecipe:
    """The KTH actions as clips of grey frames, pressed from 160x120 into a square as published.

    source is a folder with `personPP_action_dS_uncomp.avi` files anywhere below it; part of the 599 will do. People 1
    to 20 train, 21 to 25 test. Every range of a video's frames in the list becomes a clip, in the list's order.

    A range is cut where its file ends, and a range that begins after that gives no clip; a note says so, with the clip
    or with the last one before the missing ones. A video of which no range is left is a BadSource. The frames of one
    video up to the end of its last range are in memory at a time, size^2 bytes each, at most `MAX_FRAME` of them.
    """

    source: Path
    size: int = 64  # side of a frame in pixels
    sequences: Path | None = None  # the list; by default 00sequences.txt, anywhere below source

    @property
    def kind(self) -> str:
        return "kth"

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.size, self.size, 1)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "channels": 1,
            "fit": "squash",
            "resize": "antialiased bilinear",
            "split": "people 1-20 train, 21-25 test",
            "sequences_sha256": hashlib.sha256(self._text.encode()).hexdigest(),
        }

    def sources(self) -> tuple[list[Source], list[LeftOut]]:
        files, left_out = files_below(self.source)
        found: dict[str, Source] = {}
        for file in files:
            if file.path.suffix.lower() != ".avi":
                continue
            name = _NAME.fullmatch(file.path.name)
            if name is None:
                left_out.append(LeftOut(file.name, "not called personPP_action_dS_uncomp.avi"))
            elif name["video"] not in self._ranges:
                left_out.append(LeftOut(file.name, f"{SEQUENCES} has no frames of this video"))
            elif name["video"] in found:
                left_out.append(LeftOut(file.name, f"the same video as {found[name['video']].name}"))
            else:
                split: Split = "test" if int(name["person"]) in TEST_PEOPLE else "train"
                found[name["video"]] = Source(file.name, file.path, split, file.n_bytes, file.modified)
        if not found:
            raise FileNotFoundError(
                f"no KTH videos in {self.source}: looked for personPP_action_dS_uncomp.avi that {SEQUENCES} lists"
            )
        if missing := len(self._ranges) - len(found):
            reason = f"{missing} of the {len(self._ranges)} videos in {SEQUENCES} are not here"
            left_out.append(LeftOut(SEQUENCES, reason))
        return list(found.values()), left_out

    def clips(self, source: Source) -> Iterator[RawClip]:
        ranges = self._ranges[video_of(source.name)]
        needed = max(end for _, end in ranges)
        frames: list[Frame] = []
        n_frames = 0
        for frame in decode(source.path, self.size, 1):  # to its end, where a truncated file is noticed
            if n_frames < needed:
                frames.append(frame)
            n_frames += 1
        kept = [(start, end) for start, end in ranges if start <= n_frames]
        if not kept:
            raise BadSource(f"the file ends at {n_frames}, before the first frame of every range in {SEQUENCES}")
        lost = [f"frames {start}-{end} are missing" for start, end in ranges if start > n_frames]
        for k, (start, end) in enumerate(kept):
            notes = [f"frames {start}-{end}"] if end > n_frames else []
            if k == len(kept) - 1:
                notes += lost
            note = f"{', '.join(notes)}: the file ends at {n_frames}" if notes else ""
            yield RawClip(frames[start - 1 : end], first=start - 1, note=note)

    @cached_property
    def _list(self) -> Path:
        return self.sequences or _find(self.source)

    @cached_property
    def _text(self) -> str:
        return _read(self._list)

    @cached_property
    def _ranges(self) -> dict[str, list[tuple[int, int]]]:
        try:
            return parse_sequences(self._text)
        except ValueError as error:
            raise ValueError(f"{self._list}: {error}") from error


def parse_sequences(text: str) -> dict[str, list[tuple[int, int]]]:
    """The frame ranges of every video that a list in the format of KTH's 00sequences.txt names.

    Returns {"person01_boxing_d1": [(1, 95), ...], ...}: first and last frame, from 1, both included. Ranges may
    overlap and come in any order. Videos that are `*missing*` are not in it. What stands before the first line that
    begins with "person" is taken for a heading, blank lines are skipped.

    Raises ValueError, which names the line, for one that is not understood, a video that comes twice, a range that is
    empty or begins before 1 or ends after `MAX_FRAME`; and for a text without any video.
    """
    found: dict[str, list[tuple[int, int]]] = {}
    seen: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or not (seen or line.startswith("person")):
            continue
        entry = _LINE.fullmatch(line)
        if entry is None:
            raise ValueError(f"line {number} must be 'personPP_action_dS frames 1-95, 96-185, ...', got {line[:80]!r}")
        video = entry["video"]
        if video in seen:
            raise ValueError(f"line {number}: {video} comes a second time")
        seen.add(video)
        if entry["ranges"]:
            found[video] = [_range(text, number) for text in entry["ranges"].split(",")]
    if not found:
        raise ValueError("no line begins with the name of a video, such as person01_boxing_d1")
    return found


def video_of(source_name: str) -> str:
    """Which video a source is, such as person01_boxing_d1; ValueError for a file that is called otherwise."""
    return _name_of(source_name)["video"]


def action_of(source_name: str) -> str:
    """Which of the `ACTIONS` a source shows; ValueError for a file that is called otherwise."""
    return _name_of(source_name)["action"]


def _name_of(source_name: str) -> re.Match[str]:
    name = _NAME.fullmatch(source_name.rpartition("/")[2])
    if name is None:
        raise ValueError(f"must be called personPP_action_dS_uncomp.avi, got {source_name!r}")
    return name


def _range(text: str, line: int) -> tuple[int, int]:
    start, _, end = text.strip().partition("-")
    if max(len(start), len(end)) > len(str(MAX_FRAME)) or not 1 <= int(start) <= int(end) <= MAX_FRAME:
        raise ValueError(f"line {line}: a range must go up and lie in 1-{MAX_FRAME}, got {text.strip()[:40]}")
    return int(start), int(end)


def _find(folder: Path) -> Path:
    for file in files_below(folder)[0]:
        if file.path.name == SEQUENCES:
            return file.path
    raise FileNotFoundError(f"no {SEQUENCES} in {folder}: it comes with the videos, and may be given by itself")


def _read(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"{path} must be a list of frames in at most {_MAX_BYTES} bytes")
    return data.decode("utf-8-sig", errors="replace")
