"""What a folder of shards holds, as rows of words and as one HTML page to look at before training on it.

The page reads a few frames only, so that neither its size nor the time it takes grows with the data set. All names come
from files that are not trusted: they are shown as text, without control characters, and cut where they are long.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..data.digits import Split
from ..data.recipe import LeftOut, printable
from ..data.shards import Clip, Manifest, Shard, Shards, load_manifest
from ..files import replacing
from .pages import Picture, in_words, picture, render

Frames = npt.NDArray[np.uint8]

FRAMES_PER_SECOND = 25  # KTH's, at which the preview plays
LISTED = 200  # of what was left out
_CLIPS, _COLUMNS = 12, 4  # of a split's preview
_PLAYED = 50  # frames of a clip in it
_SHOWN = 8  # frames of a clip in the contact sheet
_SIDE = 96  # pixels; larger frames are shown as small as this
_GAP = 4  # pixels between frames; even, since WebP halves the resolution of colours
_SAMPLED = 200  # frames whose pixels are counted
_CHANNELS = 4  # at most, that are counted
_LEVELS = 4  # values of a pixel in one bar
_BARS = 40  # at most, of a histogram of lengths
_NAMES = {1: ("grey",), 3: ("red", "green", "blue")}
_SETTING = 1200  # characters
_DASH = "\N{EN DASH}"


class Bars(NamedTuple):
    """A histogram. bars: height in percent of the highest, and what it stands for. low, high: below its two ends."""

    bars: list[tuple[float, str]]
    low: str
    high: str

    @property
    def most(self) -> str:
        """What the highest bar stands for."""
        return f"most often {max(self.bars)[1]}"


class Pixels(NamedTuple):
    """One channel's pixels, over the sampled frames: levels from 0 to 255, shares in percent."""

    channel: str
    mean: float
    deviation: float
    black: float
    saturated: float


class Row(NamedTuple):
    """A clip of the contact sheet: its source, which frames of it and what else is known, and the pictures."""

    source: str
    words: str
    picture: Picture


class SplitView(NamedTuple):
    """What the page shows of a split."""

    split: Split
    preview: Picture
    n_played: int
    sheet: list[Row]
    n_clips: int
    lengths: Bars | None  # where clips of the data set differ
    n_sampled: int
    pixels: list[Pixels]
    levels: Bars


def write_data_page(path: str | Path, root: str | Path) -> None:
    """Write the HTML file `path` about the shards in `root`: numbers, clips as they play, and what was left out.

    Raises FileNotFoundError where there are no shards, ValueError for shards that are damaged or changed, OSError where
    one cannot be read or the page not be written.
    """
    root = Path(root)
    manifest = load_manifest(root)
    left_out = manifest.all_left_out()
    clips = [clip.n_frames for split in get_args(Split) for clip in _clips(manifest, split)]
    ends = (min(clips), max(clips)) if clips else (0, 0)
    content = {
        "title": f"{printable(manifest.kind)} data in {printable(root.resolve().name)}",
        "shape": manifest.shape,
        "splits": get_args(Split),
        "rows": numbers(manifest),
        "views": [_view(Shards(root, split), ends) for split in get_args(Split) if _clips(manifest, split)],
        "frames_per_second": FRAMES_PER_SECOND,
        "settings": settings(manifest),
        "left_out": [printable_source(out) for out in left_out[:LISTED]],
        "n_left_out": len(left_out),
    }
    page = render("data_page.html.j2", content, {})
    with replacing(path) as part:
        part.write_text(page, encoding="utf-8")


def numbers(manifest: Manifest) -> list[tuple[str, list[str]]]:
    """How much there is: what is counted, and the count in the splits train and test, in words."""
    columns = [_numbers([shard for shard in manifest.shards if shard.split == split]) for split in get_args(Split)]
    return [(name, [column[name] for column in columns]) for name in columns[0]]


def settings(manifest: Manifest) -> list[tuple[str, str]]:
    """How the data set was converted, and which further arrays its clips have: names and words."""
    pairs = [(name.replace("_", " "), in_words(value)) for name, value in manifest.settings.items()]
    clips = [clip for split in get_args(Split) for clip in _clips(manifest, split)]
    arrays = Counter(name for clip in clips for name in clip.arrays)
    pairs += [(f"array {name}", f"with {count:,} of {len(clips):,} clips") for name, count in arrays.items()]
    return [(printable(name), printable(words, _SETTING)) for name, words in pairs[:LISTED]]


def printable_source(out: LeftOut) -> LeftOut:
    """The same with a name and a reason that can be shown."""
    return LeftOut(printable(out.name), printable(out.reason))


def _clips(manifest: Manifest, split: Split) -> list[Clip]:
    return [clip for shard in manifest.shards if shard.split == split for clip in shard.clips]


def _numbers(shards: Sequence[Shard]) -> dict[str, str]:
    used = sum(len({clip.source for clip in shard.clips}) for shard in shards)
    read = sum(len(shard.sources) for shard in shards)
    lengths = np.array([clip.n_frames for shard in shards for clip in shard.clips], np.int64)
    ends = (lengths.min(), np.median(lengths), lengths.max()) if lengths.size else ()
    shortest, middle, longest = (f"{end:,.10g}" for end in ends) if ends else (_DASH,) * 3
    return {
        "shards": f"{len(shards):,}",
        "sources": f"{used:,}" if used == read else f"{used:,} of {read:,}",
        "clips": f"{lengths.size:,}",
        "frames": f"{lengths.sum():,}",
        "shortest clip, in frames": shortest,
        "median clip, in frames": middle,
        "longest clip, in frames": longest,
        "size": _bytes(sum(shard.n_bytes for shard in shards)),
    }


def _bytes(n_bytes: float) -> str:
    """A number of bytes in the largest unit, powers of 1000, of which there is one."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 999.5:  # which three digits would round to 1e+03
            return f"{n_bytes:,.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.2f} TB"


def _view(shards: Shards, ends: tuple[int, int]) -> SplitView:
    clips, known = _spread(len(shards), _CLIPS), _clips(shards.manifest, shards.split)
    preview, n_played = _preview(shards, clips)
    pixels, levels, n_sampled = _count_pixels(shards)
    return SplitView(
        shards.split,
        preview,
        n_played,
        [_row(shards, clip, known[clip].note) for clip in clips],
        len(shards),
        _length_bars(shards.n_frames, *ends),
        n_sampled,
        pixels,
        levels,
    )


def _spread(n: int, most: int) -> list[int]:
    """Up to `most` of the numbers 0 .. n - 1, each from the middle of its share."""
    k = min(n, most)
    return ((2 * np.arange(k) + 1) * n // (2 * k)).tolist()


def _preview(shards: Shards, clips: Sequence[int]) -> tuple[Picture, int]:
    """An animation of clips side by side, and its number of frames; a clip that ends before stays on its last frame."""
    lengths = [int(shards.n_frames[clip]) for clip in clips]
    n_played = min(max(lengths), _PLAYED)
    playing = []
    for clip, length in zip(clips, lengths, strict=True):
        start = max(length - n_played, 0) // 2
        tiles = _tiles(shards.frames(clip, start, min(start + n_played, length)))
        playing.append(np.concatenate([tiles, tiles[-1:].repeat(n_played - len(tiles), 0)]))
    images = [_grid(moment, _COLUMNS) for moment in np.stack(playing, 1)]
    data = _webp(images[0], save_all=True, append_images=images[1:], duration=1000 // FRAMES_PER_SECOND, loop=0)
    scale = max(1, 4 * _SIDE // 3 // max(playing[0].shape[1:3]))
    width, height = (scale * side for side in images[0].size)
    alt = f"{len(clips)} {shards.split} clips side by side (animation of {n_played} frames)"
    return picture(data, "webp", (width, height), "", alt), n_played


def _row(shards: Shards, clip: int, note: str) -> Row:
    """Evenly spaced frames of a clip, the first and the last among them."""
    length, first, name = int(shards.n_frames[clip]), int(shards.firsts[clip]), printable(shards.sources[clip])
    times = np.linspace(0, length - 1, min(length, _SHOWN)).round().astype(int)
    image = _grid(_tiles(shards.frames(clip)[times]), _SHOWN)
    data = _webp(image, lossless=max(shards.shape[:2]) <= _SIDE)
    alt = f"Frames {', '.join(map(str, first + times))} of {name}, from left to right"
    words = f"clip {clip}, frames {first}{_DASH}{first + length - 1}" + (f"; {printable(note)}" if note else "")
    return Row(name, words, picture(data, "webp", image.size, "", alt))


def _webp(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=90, method=2, **options)
    return file.getvalue()


def _tiles(frames: Frames) -> Frames:
    """Frames (T, H, W, C) as colours (T, h, w, 3), no side longer than `_SIDE`.

    Neither one nor three channels: the first three are shown, or the first alone.
    """
    colours = frames[..., :3] if frames.shape[3] >= 3 else frames[..., :1].repeat(3, 3)
    images = [Image.fromarray(np.ascontiguousarray(frame)) for frame in colours]
    for image in images:
        image.thumbnail((_SIDE, _SIDE))
    return np.stack([np.asarray(image) for image in images])


def _grid(tiles: Frames, columns: int) -> Image.Image:
    """Tiles (N, h, w, 3) in rows of up to so many columns, with transparent gaps."""
    n, height, width, _ = tiles.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    canvas = np.zeros((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 4), np.uint8)
    for k, tile in enumerate(tiles):
        y, x = k // columns * (height + _GAP), k % columns * (width + _GAP)
        canvas[y : y + height, x : x + width, :3] = tile
        canvas[y : y + height, x : x + width, 3] = 255
    return Image.fromarray(canvas)


def _count_pixels(shards: Shards) -> tuple[list[Pixels], Bars, int]:
    """Of the middle frames of clips evenly spread: each channel's statistics, all pixels' levels, how many frames."""
    clips = _spread(len(shards), _SAMPLED)
    n_channels = min(shards.shape[2], _CHANNELS)
    counts = np.zeros((n_channels, 256), np.int64)
    for clip in clips:
        middle = int(shards.n_frames[clip]) // 2
        (frame,) = shards.frames(clip, middle, middle + 1)
        for channel, count in enumerate(counts):
            count += np.bincount(frame[..., channel].ravel(), minlength=256)
    names = _NAMES.get(shards.shape[2]) or [f"channel {channel}" for channel in range(n_channels)]
    level, pixels = np.arange(256), []
    for name, share in zip(names, counts / counts[0].sum(), strict=True):
        mean = float(share @ level)
        deviation = float(share @ (level - mean) ** 2) ** 0.5
        pixels.append(Pixels(name, mean, deviation, 100 * float(share[0]), 100 * float(share[255])))
    shares = counts.sum(0).reshape(-1, _LEVELS).sum(1) / counts.sum()
    words = [
        f"{k * _LEVELS} to {(k + 1) * _LEVELS - 1}: {100 * share:.1f}\N{NO-BREAK SPACE}%"
        for k, share in enumerate(shares)
    ]
    bars = list(zip((100 * shares / shares.max()).tolist(), words, strict=True))
    return pixels, Bars(bars, "0", "255"), len(clips)


def _length_bars(lengths: npt.NDArray[np.int64], least: int, most: int) -> Bars | None:
    """How many clips have how many frames, in bars for `least` to `most`; none where these are the same."""
    if least == most:
        return None
    widths = (digit * 10**power for power in range(16) for digit in (1, 2, 5))
    width = next(width for width in widths if most // width - least // width < _BARS)
    counts = np.bincount(lengths // width - least // width, minlength=most // width - least // width + 1)
    begins = [(least // width + k) * width for k in range(len(counts))]
    spans = [f"{begin}" if width == 1 else f"{begin} to {begin + width - 1}" for begin in begins]
    words = [f"{span} frames: {count:,} of {len(lengths):,} clips" for span, count in zip(spans, counts, strict=True)]
    bars = list(zip((100 * counts / counts.max()).tolist(), words, strict=True))
    return Bars(bars, str(begins[0]), str(begins[-1] + width - 1))
