"""Batches of 100 clips of 15 frames of 64x64 from stored videos: the shards against other ways to keep the same frames.

Every way gives a batch in bytes, (100, 15, 64, 64, C), of clips and starts drawn at random; one process, one thread,
files in the page cache. `PNG per frame` is how published loaders read KTH and BAIR. `copy` is the same number of bytes
from one place of an array as large as the shards: the least that a batch can take. WebDataset streams the same shards
in their order, which is all a stream can do. The frames are synthetic: a smooth texture that moves, with faint noise.
The row has what each form takes on the disk, in bytes for each pixel's byte.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch
import webdataset
from measure import Race, Work
from PIL import Image
from scipy.ndimage import gaussian_filter
from shard_files import write_shards

from svg_fast.data import VideoShards

BATCH, FRAMES, SIZE = 100, 15, 64
CLIPS, STORED = 400, 30  # in four shards; 49 or 147 MB
Array = npt.NDArray[np.uint8]


def make_clips(channels: int) -> Array:
    """(CLIPS, STORED, SIZE, SIZE, channels)."""
    rng = np.random.default_rng(0)
    texture = gaussian_filter(rng.standard_normal((512, 512, channels)), (3, 3, 0))
    texture = (texture - texture.min()) / np.ptp(texture) * 230
    clips = np.empty((CLIPS, STORED, SIZE, SIZE, channels), np.uint8)
    for clip in clips:
        place, step = rng.integers(40, 400, 2), rng.integers(-1, 2, 2)
        for t, frame in enumerate(clip):
            y, x = place + t * step
            frame[:] = texture[y : y + SIZE, x : x + SIZE] + rng.integers(0, 4, frame.shape)
    return clips


def cut(rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Clips and starts of a batch."""
    places = rng.integers((CLIPS, STORED - FRAMES + 1), size=(BATCH, 2))
    yield from ((int(clip), int(start)) for clip, start in places)


def png_per_frame(folder: Path, clips: Array, rng: np.random.Generator) -> Callable[[], Array]:
    for k, clip in enumerate(clips):
        (folder / str(k)).mkdir(parents=True)
        for t, frame in enumerate(clip):
            Image.fromarray(frame.squeeze()).save(folder / str(k) / f"{t}.png")

    def read(clip: int, start: int) -> list[Array]:
        return [np.asarray(Image.open(folder / str(clip) / f"{t}.png")) for t in range(start, start + FRAMES)]

    return lambda: np.stack([np.stack(read(clip, start)) for clip, start in cut(rng)])


def npy_per_clip(folder: Path, clips: Array, rng: np.random.Generator) -> Callable[[], Array]:
    folder.mkdir()
    for k, clip in enumerate(clips):
        np.save(folder / f"{k}.npy", clip)

    def read(clip: int, start: int) -> Array:
        return np.load(folder / f"{clip}.npy", mmap_mode="r")[start : start + FRAMES]

    return lambda: np.stack([read(clip, start) for clip, start in cut(rng)])


def npz_per_clip(folder: Path, clips: Array, rng: np.random.Generator) -> Callable[[], Array]:
    folder.mkdir()
    for k, clip in enumerate(clips):
        np.savez_compressed(folder / f"{k}.npz", frames=clip)

    def read(clip: int, start: int) -> Array:
        return np.load(folder / f"{clip}.npz")["frames"][start : start + FRAMES]

    return lambda: np.stack([read(clip, start) for clip, start in cut(rng)])


def video_per_clip(folder: Path, clips: Array, rng: np.random.Generator) -> Callable[[], Array]:
    """FFV1, which loses nothing; every frame is a key frame, so that decoding begins where the clip does."""
    folder.mkdir()
    layout = "gray" if clips.shape[-1] == 1 else "rgb24"
    for k, clip in enumerate(clips):
        with av.open(str(folder / f"{k}.avi"), "w") as container:
            stream = container.add_stream("ffv1", rate=25)
            stream.width = stream.height = SIZE
            stream.gop_size = 1
            stream.pix_fmt = "gray" if layout == "gray" else "bgr0"
            for frame in clip:
                picture = av.VideoFrame.from_ndarray(frame.squeeze(), format=layout)
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))

    def read(clip: int, start: int) -> list[npt.NDArray[Any]]:
        with av.open(str(folder / f"{clip}.avi"), format="avi") as container:
            container.streams.video[0].codec_context.thread_count = 1
            packets = itertools.islice(container.demux(video=0), start, start + FRAMES)
            return [frame.to_ndarray(format=layout) for packet in packets for frame in packet.decode()]

    return lambda: np.stack([np.stack(read(clip, start)) for clip, start in cut(rng)])


def streamed(root: Path, rng: np.random.Generator) -> Callable[[], Array]:
    shards = sorted(map(str, root.glob("*.tar")))
    samples = iter(webdataset.WebDataset(shards, shardshuffle=False, resampled=True))

    def read(start: int) -> Array:
        return np.load(io.BytesIO(next(samples)["frames.npy"]))[start : start + FRAMES]

    return lambda: np.stack([read(start) for _, start in cut(rng)])


def copy(clips: Array, rng: np.random.Generator) -> Callable[[], None]:
    flat = clips.reshape(-1)
    out = np.empty(BATCH * FRAMES * flat.size // (CLIPS * STORED), np.uint8)

    def run() -> None:
        begin = int(rng.integers(flat.size - out.size))
        np.copyto(out, flat[begin : begin + out.size])

    return run


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.benchmark(group="clips from shards")
@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colour"])
@pytest.mark.parametrize("threads", [1], indirect=True)
def test_batches(race: Race, tmp_path: Path, threads: int, channels: int) -> None:
    clips = make_clips(channels)
    parts = [[(f"{k}", clips[k]) for k in range(first, first + CLIPS // 4)] for first in range(0, CLIPS, CLIPS // 4)]
    root = write_shards(tmp_path / "shards", "videos", {"train": parts})
    data = VideoShards(root, n_frames=FRAMES, sampling="independent", length=2**62)
    rng = np.random.default_rng(1)
    forms = {
        "PNG per frame": png_per_frame,
        "npy per clip": npy_per_clip,
        "npz per clip": npz_per_clip,
        "FFV1": video_per_clip,
    }
    peers: dict[str, Any] = {name: make(tmp_path / name, clips, rng) for name, make in forms.items()}
    batches = itertools.count()

    def ours() -> torch.Tensor:
        first = next(batches) * BATCH
        return data.clips(range(first, first + BATCH)).frames

    def check() -> None:
        for read in peers.values():
            state = rng.bit_generator.state
            batch = read().reshape(BATCH, FRAMES, SIZE, SIZE, channels)
            rng.bit_generator.state = state
            assert all(np.array_equal(b, clips[c, s : s + FRAMES]) for b, (c, s) in zip(batch, cut(rng), strict=True))
        batch = data.clips(range(BATCH))
        places = zip(batch.clips.tolist(), batch.starts.tolist(), strict=True)
        assert all(
            np.array_equal(b.permute(0, 2, 3, 1), clips[c, s : s + FRAMES])
            for b, (c, s) in zip(batch.frames, places, strict=True)
        )

    race(
        ours,
        {**peers, "WebDataset stream": streamed(root, rng), "copy": copy(clips, rng)},
        check=check,
        ops=[],
        work=Work("memcpy", 2 * BATCH * FRAMES * SIZE * SIZE * channels),
        rounds=8,
        disk={name: bytes_of(tmp_path / name) / clips.nbytes for name in ("shards", *forms)},
    )
