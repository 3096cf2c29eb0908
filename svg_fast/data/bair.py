"""BAIR robot pushing, `softmotion30_44k`: its TFRecord files as they are published."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from .digits import Split
from .recipe import BadSource, Frame, LeftOut, RawClip, Source
from .tfrecord import Feature, parse_example, records

FOLDER = "softmotion30_44k"
CAMERA = "image_aux1"  # what the paper's models saw; the set has a second one, image_main
SIZE = 64  # pixels, height and width of the published frames
# A published record has 0.74 MB: 30 steps of two cameras. This is room for 600 steps.
MAX_RECORD_BYTES = 16 * 2**20

_SPLITS: tuple[Split, ...] = ("train", "test")
_ARRAYS = {"action": 4, "endeffector_pos": 3}  # floats of each step


@dataclass(frozen=True)
class BairRecipe:
    """The clips of a folder with train/*.tfrecords and test/*.tfrecords, or of one that holds it as `softmotion30_44k`.

    Each record is a clip: frames from the camera image_aux1, and arrays `action` (T, 4) and `endeffector_pos` (T, 3),
    float32, where the record has them. Clips come in the order of the records, none is left out.

    size: height and width of the clips' frames in pixels; 64 leaves the bytes as they are.

    Raises ValueError for a size below 1.
    """

    root: Path
    size: int = SIZE

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {self.size}")

    @property
    def kind(self) -> str:
        return "bair"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.size, self.size, 3

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "resize": "none" if self.size == SIZE else "Pillow, bilinear, antialiased",
            "camera": CAMERA,
            "left_out": ["image_main"],
            "split": "by folder, train and test",
        }

    def sources(self) -> tuple[list[Source], list[LeftOut]]:
        """The files of both splits, sorted by name.

        Raises FileNotFoundError where there are none, OSError for a folder that cannot be read.
        """
        for folder in (self.root, self.root / FOLDER):
            found = [self._source(path, split) for split in _SPLITS for path in _tfrecords(folder / split)]
            sources = sorted(source for source in found if isinstance(source, Source))
            if sources:
                return sources, sorted(source for source in found if isinstance(source, LeftOut))
        raise FileNotFoundError(
            f"no BAIR files in {self.root}: looked for train/*.tfrecords and test/*.tfrecords, there and in {FOLDER}/"
        )

    def _source(self, path: Path, split: Split) -> Source | LeftOut:
        name = path.relative_to(self.root).as_posix()
        try:
            stat = path.stat()
        except OSError as error:
            return LeftOut(name, f"cannot be read ({error.strerror or error})")
        if not S_ISREG(stat.st_mode):
            return LeftOut(name, "is not a file")
        return Source(name, path, split, stat.st_size, stat.st_mtime_ns)

    def clips(self, source: Source) -> Iterator[RawClip]:
        """One clip a record; BadSource names the record, counted from 0.

        Raises ImportError without google-crc32c or, for another size, Pillow.
        """
        n_records = 0
        try:
            with source.path.open("rb") as file:
                for record in records(file, MAX_RECORD_BYTES):
                    try:
                        clip = self._clip(parse_example(record))
                    except BadSource as error:
                        raise BadSource(f"record {n_records}: {error}") from error
                    n_records += 1
                    yield clip
        except OSError as error:
            raise BadSource(f"cannot be read ({error.strerror or error})") from error
        if n_records == 0:
            raise BadSource("no record, the file is empty")

    def _clip(self, example: dict[str, Feature]) -> RawClip:
        frames = [_frame(key, feature) for key, feature in _steps(example, f"{CAMERA}/encoded").items()]
        if not frames:
            names = ", ".join(repr(key[:40]) for key in sorted(example)[:4])
            raise BadSource(f"features <i>/{CAMERA}/encoded must be there, got {names or 'none'}")
        arrays = {}
        for name, width in _ARRAYS.items():
            values = [_floats(key, feature, width) for key, feature in _steps(example, name).items()]
            if len(values) not in (0, len(frames)):
                raise BadSource(f"features <i>/{name} must be as many as frames, {len(frames)}, got {len(values)}")
            if values:
                arrays[name] = np.stack(values)
        return RawClip(frames if self.size == SIZE else [_resized(frame, self.size) for frame in frames], arrays=arrays)


def _tfrecords(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.suffix == ".tfrecords"]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _steps(example: dict[str, Feature], name: str) -> dict[str, Feature]:
    """The features 0/name, 1/name, ... in this order; BadSource where one is missing between them."""
    count = sum(key.partition("/")[2] == name for key in example)
    keys = [f"{i}/{name}" for i in range(count)]
    for key in keys:
        if key not in example:
            raise BadSource(f"{count} features <i>/{name} must be numbered 0 to {count - 1}, got no {key}")
    return {key: example[key] for key in keys}


def _frame(key: str, feature: Feature) -> Frame:
    """A view into the record."""
    n_bytes = SIZE * SIZE * 3
    if not isinstance(feature, list) or [view.nbytes for view in feature] != [n_bytes]:
        raise BadSource(f"{key} must be one string of {n_bytes} bytes ({SIZE}x{SIZE}x3), got {_described(feature)}")
    return np.frombuffer(feature[0], np.uint8).reshape(SIZE, SIZE, 3)


def _floats(key: str, feature: Feature, width: int) -> npt.NDArray[np.float32]:
    if isinstance(feature, list) or feature.dtype != np.float32 or feature.shape != (width,):
        raise BadSource(f"{key} must be {width} floats, got {_described(feature)}")
    return cast(npt.NDArray[np.float32], feature)


def _described(feature: Feature) -> str:
    if not isinstance(feature, list):
        return f"{feature.size} numbers of {feature.dtype}"
    return f"one string of {feature[0].nbytes} bytes" if len(feature) == 1 else f"{len(feature)} strings"


def _resized(frame: Frame, size: int) -> Frame:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("another size takes Pillow, which is not installed: pip install 'svg_fast[data]'") from error
    return np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR))
