"""Shards made in a test, as a conversion would make them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from svg_fast.data.digits import Split
from svg_fast.data.recipe import RawClip, Source
from svg_fast.data.shards import Manifest, Shard, ShardWriter, save_manifest

Array = npt.NDArray[Any]


def random_clips(*lengths: int, size: int = 8, channels: int = 1, seed: int = 0) -> list[Array]:
    """Clips of so many frames, (T, size, size, channels) of noise: no two frames are alike."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (length, size, size, channels), dtype=np.uint8) for length in lengths]


def write_shard(
    root: Path, number: int, split: Split, clips: Sequence[tuple[str, Array]], arrays: Sequence[dict[str, Array]] = ()
) -> Shard:
    """One shard of clips (source's name, frames); clips of one source must stand together."""
    names = list(dict.fromkeys(name for name, _ in clips))
    path = root / f"{split}-{number:05d}.tar"
    with path.open("w+b") as file:
        writer = ShardWriter(file, number, clips[0][1].shape[1:])
        for index, name in enumerate(names):
            of_source = [
                RawClip(iter(frames), k, arrays[k] if arrays else {})
                for k, (source, frames) in enumerate(clips)
                if source == name
            ]
            writer.add(Source(name, path, split, 1, 2), index, iter(of_source))
        sha256 = writer.finish()
    sources = [(name, 1, 2) for name in names]
    return Shard(path.name, split, path.stat().st_size, sha256, sources, writer.clips, [])


def write_shards(root: Path, kind: str, clips: dict[Split, list[list[tuple[str, Array]]]]) -> Path:
    """A whole folder: for each split its shards, each a list of clips."""
    root.mkdir(parents=True, exist_ok=True)
    every = [(split, shard) for split, shards in clips.items() for shard in shards]
    shards = [write_shard(root, number, split, shard) for number, (split, shard) in enumerate(every)]
    shape = every[0][1][0][1].shape[1:]
    save_manifest(root, Manifest(kind, shape, {"size": shape[0]}, shards, []))
    return root
