"""Shards: clips of uint8 frames in plain tar files, read in place.

A shard is an uncompressed tar of samples in WebDataset's naming, so that any tar reader can stream it: for the clip
`00002_00017` the members `00002_00017.frames.npy` (T, H, W, C), one `.npy` for each further array, and
`00002_00017.json`. The manifest knows the byte at which each clip's pixels begin, so that frames are also read by
(clip, start) from a mapping of the file: copied once, from the page cache into the batch.

manifest.json, written last, names the shards with their sizes and SHA-256, every clip and every source that gave or
did not give clips, and the settings of the conversion. docs/data.md has the measurement behind the choice.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import mmap
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, get_args

import numpy as np
import numpy.typing as npt

from ..files import replacing
from .digits import Split
from .recipe import BadSource, LeftOut, RawClip, Source

MANIFEST = "manifest.json"
FORMAT, VERSION = "svg_fast.shards", 1
_MAX_MANIFEST = 2**28  # bytes; BAIR's 44,000 clips take about 7 MB
_CHUNK = 2**20
_BLOCK = tarfile.BLOCKSIZE

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Clip:
    """Where a clip came from and where it lies.

    source: index in its shard's list. first: number of its first frame in the source, from 0. offset: byte of its first
    pixel in the shard. arrays: (byte, bytes) of each further array's .npy. note: such as a range that was cut.
    """

    source: int
    first: int
    n_frames: int
    offset: int
    arrays: dict[str, tuple[int, int]] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Shard:
    """A shard, as the manifest knows it. sources: (name, bytes, time of change in ns) of all that were read for it."""

    name: str
    split: Split
    n_bytes: int
    sha256: str
    sources: list[tuple[str, int, int]]
    clips: list[Clip]
    left_out: list[LeftOut]


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds. shape: (H, W, C) of every frame. left_out: what no shard was made of."""

    kind: str
    shape: tuple[int, int, int]
    settings: dict[str, Any]
    shards: list[Shard]
    left_out: list[LeftOut]

    def all_left_out(self) -> list[LeftOut]:
        """Everything that was left out, of whichever shard."""
        return [*self.left_out, *(out for shard in self.shards for out in shard.left_out)]


class ShardWriter:
    """Writes the clips of one shard into a new file that can be read back and cut; `finish` ends it."""

    def __init__(self, file: BinaryIO, number: int, shape: tuple[int, int, int]) -> None:
        self._file, self._number, self._shape = file, number, shape
        self.clips: list[Clip] = []

    def add(self, source: Source, index: int, clips: Iterator[RawClip]) -> None:
        """Store the clips of a source, the index-th of this shard: all of them or, should one raise, none."""
        position, kept = self._file.tell(), len(self.clips)
        try:
            for clip in clips:
                self._add(source, index, clip)
            if len(self.clips) == kept:
                raise BadSource("it has no clip")
        except BaseException:
            self._file.seek(position)
            self._file.truncate()
            del self.clips[kept:]
            raise

    def finish(self) -> str:
        """End the archive; returns the SHA-256 of the file."""
        self._file.write(bytes(2 * _BLOCK))
        self._file.flush()
        self._file.seek(0)
        return _sha256(self._file)

    def _add(self, source: Source, index: int, clip: RawClip) -> None:
        key = f"{self._number:05d}_{len(self.clips):05d}"
        n_frames, offset = self._write_frames(f"{key}.frames.npy", clip)
        arrays = {}
        for name, array in clip.arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
            arrays[name] = self._write(f"{key}.{name}.npy", content.getvalue()), content.tell()
        origin = {"source": source.name, "first": clip.first, "n_frames": n_frames, "note": clip.note}
        self._write(f"{key}.json", json.dumps(origin).encode())
        self.clips.append(Clip(index, clip.first, n_frames, offset, arrays, clip.note))

    def _write_frames(self, name: str, clip: RawClip) -> tuple[int, int]:
        """Number of frames, which is known only when they are written, and where they begin."""
        start, n_frames = self._file.tell(), 0
        self._file.write(self._heading(name, 0))
        offset = self._file.tell()
        for frame in clip.frames:
            if frame.shape != self._shape or frame.dtype != np.uint8:
                wanted = f"uint8 of shape {self._shape}"
                raise ValueError(f"frames must be {wanted}, got {frame.dtype} of shape {frame.shape}")
            self._file.write(np.ascontiguousarray(frame).data)
            n_frames += 1
        if not n_frames:
            raise BadSource("a clip of it has no frame")
        end = self._file.tell()
        self._file.seek(start)
        self._file.write(self._heading(name, n_frames))
        self._file.seek(end)
        self._pad()
        return n_frames, offset

    def _heading(self, name: str, n_frames: int) -> bytes:
        """The headers of tar and npy for so many frames; numpy's keeps its length whatever their number."""
        npy = io.BytesIO()
        layout = {"descr": "|u1", "fortran_order": False, "shape": (n_frames, *self._shape)}
        np.lib.format.write_array_header_1_0(npy, layout)
        return _tar_header(name, npy.tell() + n_frames * int(np.prod(self._shape))) + npy.getvalue()

    def _write(self, name: str, content: bytes) -> int:
        """Write a member; returns where its content begins."""
        self._file.write(_tar_header(name, len(content)))
        offset = self._file.tell()
        self._file.write(content)
        self._pad()
        return offset

    def _pad(self) -> None:
        self._file.write(bytes(-self._file.tell() % _BLOCK))


def _tar_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)  # which has room for members over 8 GiB


def _sha256(file: BinaryIO, progress: Callable[[int], object] = int) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        progress(len(chunk))
    return digest.hexdigest()


def save_manifest(root: Path, manifest: Manifest, name: str = MANIFEST) -> None:
    """Write root/manifest.json, or what else it is to be called, whole or not at all."""
    splits = {
        split: {
            "shards": sum(shard.split == split for shard in manifest.shards),
            "clips": sum(len(shard.clips) for shard in manifest.shards if shard.split == split),
            "frames": sum(clip.n_frames for shard in manifest.shards if shard.split == split for clip in shard.clips),
        }
        for split in get_args(Split)
    }
    content = {
        "format": FORMAT,
        "version": VERSION,
        "kind": manifest.kind,
        "shape": manifest.shape,
        "settings": manifest.settings,
        "splits": splits,
        "left_out": [out._asdict() for out in manifest.left_out],
        "shards": [shard_to_json(shard) for shard in manifest.shards],
    }
    with replacing(root / name) as part:
        part.write_text(json.dumps(content, indent=1), encoding="utf-8")


def load_manifest(root: Path, name: str = MANIFEST) -> Manifest:
    """The manifest of a folder of shards.

    Raises FileNotFoundError where there is none, ValueError for a damaged one or one of a newer version.
    """
    path = root / name
    if not path.is_file():
        raise FileNotFoundError(f"no {name} in {root}: `svg-fast data convert` makes such a folder")
    if path.stat().st_size > _MAX_MANIFEST:
        raise ValueError(f"{path} must have at most {_MAX_MANIFEST} bytes, got {path.stat().st_size}")
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, not {FORMAT!r}")
        if content["version"] > VERSION:
            raise ValueError(f"version {content['version']}, this svg_fast reads up to {VERSION}: upgrade it")
        height, width, channels = map(_size, content["shape"])
        return Manifest(
            str(content["kind"]),
            (height, width, channels),
            dict(content["settings"]),
            [shard_from_json(shard) for shard in content["shards"]],
            [LeftOut(str(out["name"]), str(out["reason"])) for out in content["left_out"]],
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is not a manifest of shards, or a damaged one ({error!r})") from error


def shard_to_json(shard: Shard) -> dict[str, Any]:
    """A shard in JSON's types; what a clip does not have is not written."""
    clips = [{key: value for key, value in vars(clip).items() if value not in ("", {})} for clip in shard.clips]
    return {**vars(shard), "clips": clips, "left_out": [out._asdict() for out in shard.left_out]}


def shard_from_json(content: Mapping[str, Any]) -> Shard:
    """The inverse, from a file that is not trusted; raises KeyError, TypeError or ValueError for what is no shard."""
    name, split = content["name"], content["split"]
    if not isinstance(name, str) or Path(name).name != name or not name.isprintable() or split not in get_args(Split):
        raise ValueError(f"a shard must have a plain file name and a split, got {name!r} and {split!r}")
    sources = [(str(source), int(size), int(modified)) for source, size, modified in content["sources"]]
    clips = [
        Clip(
            _size(clip["source"], 0, len(sources) - 1),
            _size(clip["first"], 0),
            _size(clip["n_frames"]),
            _size(clip["offset"], 0),
            {str(key): (_size(offset, 0), _size(size)) for key, (offset, size) in clip.get("arrays", {}).items()},
            str(clip.get("note", "")),
        )
        for clip in content["clips"]
    ]
    left_out = [LeftOut(str(out["name"]), str(out["reason"])) for out in content["left_out"]]
    return Shard(name, split, _size(content["n_bytes"]), str(content["sha256"]), sources, clips, left_out)


def _size(value: Any, least: int = 1, most: int = 2**48) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"a size must be a whole number from {least} to {most}, got {value!r}")
    return value


class Shards:
    """The clips of one split, in place; nothing is read before it is asked for.

    n_frames: int64 (N,), frames of each clip. sources: (N,) names. firsts: int64 (N,), number of a clip's first frame
    in its source. shape: (H, W, C). frame_bytes: H * W * C.

    Raises FileNotFoundError where there are no such shards, ValueError for shards that are damaged or changed.
    """

    def __init__(self, root: str | Path, split: Split) -> None:
        if split not in get_args(Split):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        self.root, self.split = Path(root), split
        self.manifest = load_manifest(self.root)
        self.shape = self.manifest.shape
        self.frame_bytes = math.prod(self.shape)  # exact, where a damaged manifest would overflow 64 bits
        self.shards = [shard for shard in self.manifest.shards if shard.split == split and shard.clips]
        if not self.shards:
            raise FileNotFoundError(f"the shards in {self.root} hold no {split} clip")
        self._maps: list[npt.NDArray[np.uint8] | None] = [None] * len(self.shards)
        self._clips = [clip for shard in self.shards for clip in shard.clips]
        self._shard_of = np.repeat(np.arange(len(self.shards)), [len(shard.clips) for shard in self.shards])
        self._offsets = np.array([clip.offset for clip in self._clips])
        self.n_frames = np.array([clip.n_frames for clip in self._clips])
        self.firsts = np.array([clip.first for clip in self._clips])
        self.sources = [shard.sources[clip.source][0] for shard in self.shards for clip in shard.clips]
        self._check_files()

    def __len__(self) -> int:
        return len(self._clips)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_maps": [None] * len(self.shards)}  # a process maps for itself

    def frames(self, clip: int, start: int = 0, stop: int | None = None) -> npt.NDArray[np.uint8]:
        """Frames start .. stop - 1 of a clip, (T, H, W, C), read-only and not copied; IndexError where it has none."""
        stop = int(self.n_frames[clip]) if stop is None else stop
        if not 0 <= start <= stop <= self.n_frames[clip]:
            raise IndexError(f"clip {clip} has {self.n_frames[clip]} frames, not {start} to {stop}")
        begin = int(self._offsets[clip]) + start * self.frame_bytes
        pixels = self._map(int(self._shard_of[clip]))[begin : begin + (stop - start) * self.frame_bytes]
        return pixels.reshape(stop - start, *self.shape)

    def gather(self, clips: Indices, starts: Indices, n_frames: int, out: npt.NDArray[np.uint8]) -> None:
        """Frames start .. start + n_frames - 1 of many clips (B,) into `out`, (B, n_frames, H, W, C) contiguous.

        The clips must be long enough: nothing is checked in what is the inner loop of training.
        """
        size = n_frames * self.frame_bytes
        begins = self._offsets[clips] + starts * self.frame_bytes
        shards = self._shard_of[clips].tolist()
        # bytes to bytes: what NumPy makes of a slice takes a tenth of the time of a grey clip
        sources = {shard: self._map(shard).data for shard in set(shards)}
        target, place = out.reshape(-1).data, 0
        for shard, begin in zip(shards, begins.tolist(), strict=True):
            target[place : place + size] = sources[shard][begin : begin + size]
            place += size

    def array(self, clip: int, name: str) -> npt.NDArray[Any]:
        """A further array of a clip, such as "action" (T, 4) of BAIR; KeyError where it has none of that name."""
        arrays, shard = self._clips[clip].arrays, int(self._shard_of[clip])
        if name not in arrays:
            raise KeyError(f"clip {clip} has no array {name!r}, only {sorted(arrays)}")
        offset, size = arrays[name]
        content = io.BytesIO(self._map(shard)[offset : offset + size].tobytes())
        try:
            return np.lib.format.read_array(content, allow_pickle=False)
        except (ValueError, EOFError, MemoryError) as error:
            raise ValueError(f"{self.shards[shard].name} is damaged at byte {offset} ({error})") from error

    def _map(self, shard: int) -> npt.NDArray[np.uint8]:
        mapped = self._maps[shard]
        if mapped is None:
            with (self.root / self.shards[shard].name).open("rb") as file:
                mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
            self._maps[shard] = mapped
        return mapped

    def _check_files(self) -> None:
        """That the files are those of the manifest and hold every clip: a mapping beyond their end would be fatal."""
        for shard in self.shards:
            path = self.root / shard.name
            if not path.is_file():
                raise FileNotFoundError(f"{path} is in the manifest, but not there")
            size = path.stat().st_size
            if size != shard.n_bytes:
                raise ValueError(f"{path} must have {shard.n_bytes} bytes, got {size}: it is truncated or changed")
            for clip in shard.clips:
                end = clip.offset + clip.n_frames * self.frame_bytes
                if max(end, *(sum(place) for place in clip.arrays.values()), 0) > size:
                    raise ValueError(f"{path} has {size} bytes, but the manifest has a clip in it that ends later")


def damaged(root: Path, shards: Iterable[Shard], progress: Callable[[int], object]) -> list[str]:
    """Read every shard in `root`; names those that are not as the manifest has them, each with what is wrong.

    progress: called with a number of bytes whenever so many were read.
    """
    found = ((shard.name, _damage(root / shard.name, shard, progress)) for shard in shards)
    return [f"{name} ({damage})" for name, damage in found if damage]


def _damage(path: Path, shard: Shard, progress: Callable[[int], object]) -> str:
    try:
        if not path.is_file():
            return "not there"
        if path.stat().st_size != shard.n_bytes:
            return f"{path.stat().st_size:,} bytes instead of {shard.n_bytes:,}"
        with path.open("rb") as file:
            found = _sha256(file, progress)
    except OSError as error:
        return str(error.strerror)
    return "" if found == shard.sha256 else "another SHA-256"
