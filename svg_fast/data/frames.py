"""A recipe for any folder of videos, of folders with frames, and of arrays in Moving MNIST's layout."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .digits import Split
from .recipe import BadSource, Frame, LeftOut, RawClip, Source
from .video import ENDINGS, MAX_PIXELS, Fit, decode, square

IMAGE_ENDINGS = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm"})
_IMAGE_FORMATS = ("BMP", "JPEG", "PNG", "PPM")  # as Pillow calls them; a file's bytes choose, not its ending
CLIPS_PER_SOURCE = 500  # of an array: what a process converts at a time
_FOLDERS: dict[str, Split] = {"train": "train", "test": "test"}
_VALIDATION = ("val", "valid", "validation")


class File(NamedTuple):
    """A regular file below a folder."""

    name: str  # relative to the folder, with slashes
    path: Path
    n_bytes: int
    modified: int  # ns


@dataclass(frozen=True)
class VideosRecipe:
    """Any videos, as square clips: every file, folder of frames or row of an array becomes one clip.

    source is a folder, searched with all that is below it, or one video or array file. It may hold
    * videos with one of the endings in `video.ENDINGS`;
    * folders with images (`IMAGE_ENDINGS`) directly in them: one clip each, in the natural order of the names (2.png
      before 10.png), all frames of one size;
    * `.npy` arrays (T, N, S, S) uint8, time first, as Moving MNIST's test set comes: N grey clips.

    Where clips lie in top-level folders train/ or test/, those are the split. What lies outside them is left out, and
    so are val/, valid/ and validation/, unless there is no test/ that they can stand for. Otherwise the sources are
    ordered by the SHA-256 of their names, and the first round(test_fraction n) of n, at least one if n >= 2, are test.

    Names that begin with a dot are skipped; links to folders are not followed.
    """

    source: Path
    size: int = 64  # side of a frame in pixels
    channels: int = 3  # 1 grey, 3 RGB
    fit: Fit = "squash"  # the whole frame; "crop" takes the largest centred square
    test_fraction: float = 0.1  # of the sources, where no folders say it
    min_frames: int = 2  # a shorter clip leaves its source out

    def __post_init__(self) -> None:
        if self.size < 1 or self.channels not in (1, 3) or self.fit not in ("squash", "crop"):
            raise ValueError(
                "size must be positive, channels 1 or 3, fit 'squash' or 'crop', "
                f"got {self.size}, {self.channels} and {self.fit!r}"
            )
        if not 0 <= self.test_fraction <= 1:
            raise ValueError(f"test_fraction must lie in [0, 1], got {self.test_fraction}")

    @property
    def kind(self) -> str:
        return "videos"

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.size, self.size, self.channels)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "channels": self.channels,
            "fit": self.fit,
            "resize": "antialiased bilinear",
            "min_frames": self.min_frames,
            "test_fraction": self.test_fraction,
            "split": "top-level folders train/ and test/, or else the first test_fraction by SHA-256 of the name",
        }

    def sources(self) -> tuple[list[Source], list[LeftOut]]:
        files, left_out = files_below(self.source)
        found: list[Source] = []
        folders: dict[str, list[File]] = {}
        for file in files:
            ending = file.path.suffix.lower()
            if ending in ENDINGS:
                found.append(Source(file.name, file.path, "train", file.n_bytes, file.modified))
            elif ending == ".npy":
                try:
                    found += _parts_of_array(file)
                except BadSource as error:
                    left_out.append(LeftOut(file.name, str(error)))
            elif ending in IMAGE_ENDINGS and file.path != self.source:
                folders.setdefault(file.name.rpartition("/")[0] or ".", []).append(file)
        for name, images in folders.items():
            n_bytes, modified = sum(image.n_bytes for image in images), max(image.modified for image in images)
            found.append(Source(name, images[0].path.parent, "train", n_bytes, modified))
        found.sort(key=lambda source: _natural(source.name))
        if not found:
            raise FileNotFoundError(
                f"no videos in {self.source}: looked for {', '.join(sorted(ENDINGS))}, .npy and folders of images"
            )
        return _split(found, left_out, self.test_fraction)

    def clips(self, source: Source) -> Iterator[RawClip]:
        if source.path.is_dir():
            yield RawClip(self._enough(self._images(source.path)))
        elif source.path.suffix.lower() == ".npy":
            for clip in _rows(source):
                yield RawClip(self._enough(self._from_grey(frame) for frame in clip))
        else:
            yield RawClip(self._enough(decode(source.path, self.size, self.channels, self.fit)))

    def _enough(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        count = 0
        for frame in frames:
            yield frame
            count += 1
        if count < self.min_frames:
            raise BadSource(f"{count} frames, fewer than the {self.min_frames} that a clip needs")

    def _images(self, folder: Path) -> Iterator[Frame]:
        try:
            names = [name for name in os.listdir(folder) if not name.startswith(".")]
        except OSError as error:
            raise BadSource(f"not a folder that can be read ({error.strerror})") from error
        images = sorted((name for name in names if _ending(name) in IMAGE_ENDINGS), key=_natural)
        first: tuple[int, ...] | None = None
        for name in images:
            if not (folder / name).is_file():  # a pipe would be waited for
                raise BadSource(f"{_printable(name)}: not a file")
            pixels = _read_image(folder / name, self.channels)
            first = first or pixels.shape
            if pixels.shape != first:
                raise BadSource(f"frames of two sizes: {images[0]} {first[:2]}, {name} {pixels.shape[:2]}")
            yield square(pixels, self.size, self.fit)

    def _from_grey(self, frame: npt.NDArray[np.uint8]) -> Frame:
        grey = square(frame[..., None], self.size)
        return grey if self.channels == 1 else np.repeat(grey, self.channels, axis=2)


def files_below(folder: Path) -> tuple[list[File], list[LeftOut]]:
    """The regular files in a folder and below, in the order of their names, and what was found but cannot be read.

    A file stands for itself. Hidden names are skipped, links to folders not followed. A name that is not UTF-8 is
    left out, since JSON cannot hold it. Raises OSError if the folder itself is missing or cannot be read.
    """
    if folder.is_file():
        return [_file(folder.name, folder)], []
    os.scandir(folder).close()  # OSError here is the user's; below, it is one more thing that is left out
    found: list[File] = []
    left_out: list[LeftOut] = []

    def leave_out(path: str | Path, reason: str) -> None:
        left_out.append(LeftOut(_printable(Path(path).relative_to(folder).as_posix()), reason))

    def unreadable(error: OSError) -> None:
        leave_out(error.filename, error.strerror or "cannot be read")

    for parent, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if os.path.islink(os.path.join(parent, name)):
                leave_out(Path(parent, name), "a link to a folder, which is not followed")
        for name in names:
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            if name.startswith("."):
                continue
            if _printable(relative) != relative:
                leave_out(path, "its name is not UTF-8")
                continue
            try:
                found.append(_file(relative, path))
            except OSError as error:
                leave_out(path, error.strerror or "cannot be read")
    return sorted(found), sorted(left_out)


def _file(name: str, path: Path) -> File:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(None, "neither a file nor a folder")  # a pipe would be waited for
    return File(name, path, status.st_size, status.st_mtime_ns)


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _split(found: list[Source], left_out: list[LeftOut], fraction: float) -> tuple[list[Source], list[LeftOut]]:
    """Sources with their split, in the same order; the rule is in `VideosRecipe`."""
    tops = {source.name.partition("/")[0] for source in found}
    if not tops & _FOLDERS.keys():
        ranked = sorted(found, key=lambda source: hashlib.sha256(source.name.encode()).digest())
        n_test = round(fraction * len(found))
        if fraction > 0 and len(found) >= 2:
            n_test = max(n_test, 1)
        test = {source.name for source in ranked[:n_test]}
        return [source._replace(split="test" if source.name in test else "train") for source in found], left_out
    splits = dict(_FOLDERS)
    if "test" not in tops:
        splits |= dict.fromkeys(_VALIDATION, "test")
    kept = []
    for source in found:
        top = source.name.partition("/")[0]
        if top in splits:
            kept.append(source._replace(split=splits[top]))
        else:
            left_out.append(LeftOut(source.name, "in neither of the folders train/ and test/"))
    return kept, left_out


def _parts_of_array(file: File) -> Iterator[Source]:
    n_clips = _open_array(file.path).shape[1]
    for start in range(0, n_clips, CLIPS_PER_SOURCE):
        name = f"{file.name}[{start}:{min(start + CLIPS_PER_SOURCE, n_clips)}]"
        yield Source(name, file.path, "train", file.n_bytes, file.modified)


def _rows(source: Source) -> Iterator[npt.NDArray[np.uint8]]:
    """Clips (T, S, S) of a source that is called array.npy[start:end]."""
    array = _open_array(source.path)
    start, end = (int(number) for number in source.name.rpartition("[")[2].rstrip("]").split(":"))
    if end > array.shape[1]:
        raise BadSource(f"{array.shape[1]} clips in the file, fewer than before")
    for index in range(start, end):
        yield array[:, index]


def _open_array(path: Path) -> npt.NDArray[np.uint8]:
    """An array (T, N, S, S) uint8, of which only what is looked at is read."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # it never unpickles
    except Exception as error:  # whatever a damaged or hostile header makes of NumPy, it is the file that is wrong
        raise BadSource(f"not a whole .npy file ({error})") from error
    shape = array.shape
    if array.dtype != np.uint8 or len(shape) != 4 or shape[2] != shape[3] or 0 in shape or shape[2] ** 2 > MAX_PIXELS:
        raise BadSource(f"must be (T, N, S, S) uint8, got {shape} {array.dtype}")
    return array


def _read_image(path: Path, channels: int) -> Frame:
    """An image, (H, W, channels); transparent pixels are seen on white, as in a GIF."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_IMAGE_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise BadSource(f"more than the {MAX_PIXELS} pixels that are read")
                pixels = np.asarray(_eight_bits(image).convert("L" if channels == 1 else "RGB"))
    except Exception as error:  # whatever a damaged or hostile file makes of Pillow, it is the file that is wrong
        raise BadSource(f"{_printable(path.name)}: not an image that can be read ({error})") from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _eight_bits(image: Any) -> Any:
    """An image of 8 bits a channel without transparency."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits, which Pillow's convert would clip
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "F":
        raise BadSource("its pixels are floating-point numbers")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _natural(name: str) -> tuple[list[Any], str]:
    """A key that orders names by their numbers: 2.png before 10.png."""
    parts: list[Any] = re.split(r"([0-9]+)", name)
    parts[1::2] = map(int, parts[1::2])
    return parts, name
