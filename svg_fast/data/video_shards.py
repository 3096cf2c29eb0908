"""Clips of fixed length, cut on the fly from the shards of any videos.

B clips, T frames, N stored clips of at least T frames. Which stored clip an index means, where it starts and whether it
is mirrored are functions of the seed and the index alone, not of batch, worker, process or history: so a run splits
over processes, stops and goes on by its indices, and nothing else needs to be saved.
"""

from __future__ import annotations

import functools
import hashlib
import operator
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..reference.philox import philox4x32
from .digits import Split
from .shards import Indices, Shards

Sampling = Literal["epochs", "independent"]
Starts = Literal["random", "first"]

_DRAWN_AT_ONCE = 4096  # indices; their draws are kept, so that a batch costs little more than its copy
_DRAWS, _ORDER = 0, 1  # streams of random numbers


class VideoClips(NamedTuple):
    """A batch of clips and where they came from."""

    frames: Tensor  # (B, T, C, H, W) uint8, the channels last in memory
    clips: Tensor  # (B,) int64: which of the dataset's `shards`
    starts: Tensor  # (B,) int64: number of the first frame, from 0, in that stored clip
    mirrored: Tensor  # (B,) bool


class VideoShards(Dataset[Tensor]):
    """Clips of a folder that `svg-fast data convert` made; an item is (T, C, H, W) uint8.

    Stored clips shorter than n_frames are not used; `too_short` counts them.

    Args:
        root: the folder with manifest.json.
        split: "train" or "test". Test clips are fixed: each stored clip once, in an order that takes the first of
            them from all over the split.
        n_frames: T, frames per clip.
        sampling: "epochs": every N indices hold each clip exactly once, in an order of their own. "independent": every
            index draws a clip, as published loaders do. Of training clips. None is the class's default: epochs.
        starts: "random": uniform over the places where T frames fit. "first": frame 0. None: the default, random.
        hold_out: fraction of the training sources that is not used, at least one, chosen by the SHA-256 of their names;
            with held_out=True nothing else is, and the clips are fixed as those of a test set.
        mirror: whether each clip is mirrored left to right with probability 1/2. Of training clips.
        seed: 0 <= seed < 2**64.
        length: number of indices of a training set; None is N. Test sets have N.

    Raises:
        FileNotFoundError: no such shards. ValueError: damaged ones, no clip of n_frames, or an argument out of range.
    """

    kind: str | None = None  # of the shards that a subclass takes
    default_sampling: Sampling = "epochs"
    default_starts: Starts = "random"
    test_in_order = False  # whether test clips come as they are stored

    def __init__(
        self,
        root: str | Path,
        split: Split = "train",
        n_frames: int = 15,
        *,
        sampling: Sampling | None = None,
        starts: Starts | None = None,
        hold_out: float = 0.0,
        held_out: bool = False,
        mirror: bool = False,
        seed: int = 0,
        length: int | None = None,
    ) -> None:
        sampling, starts = sampling or self.default_sampling, starts or self.default_starts
        if sampling not in get_args(Sampling) or starts not in get_args(Starts):
            raise ValueError(
                f"sampling must be one of {', '.join(get_args(Sampling))} and starts one of"
                f" {', '.join(get_args(Starts))}, got {sampling!r} and {starts!r}"
            )
        if n_frames < 1 or (length is not None and length < 1) or not 0 <= seed < 2**64:
            raise ValueError(
                f"n_frames and length must be at least 1 and seed in [0, 2**64), got {n_frames}, {length} and {seed}"
            )
        if not 0 <= hold_out < 1 or (held_out and not hold_out) or (hold_out and split != "train"):
            raise ValueError(
                f"hold_out must be in [0, 1), of training clips, and not 0 for held_out, got {hold_out} of {split}"
            )
        self.shards = Shards(root, split)
        if self.kind not in (None, self.shards.manifest.kind):
            raise ValueError(f"{root} must hold shards of {self.kind}, got {self.shards.manifest.kind}")
        self.n_frames, self.seed, self.starts = n_frames, seed, starts
        training = split == "train" and not held_out
        self.sampling = sampling if training else "epochs"
        self.mirror, self.fixed = mirror and training, not training
        used = np.ones(len(self.shards), np.bool_)
        if hold_out:
            kept = _held_out(self.shards.sources, hold_out)
            used = np.array([(name in kept) == held_out for name in self.shards.sources])
        long = self.shards.n_frames >= n_frames
        self._stored = np.flatnonzero(used & long)
        self.too_short = int((used & ~long).sum())
        if not len(self._stored):
            if not used.any():
                raise ValueError(f"{root} must hold more than one source, got hold_out = {hold_out}, which keeps all")
            longest = self.shards.n_frames[used].max()
            raise ValueError(f"{root} must hold {split} clips of {n_frames} frames, got none longer than {longest}")
        self._room = self.shards.n_frames[self._stored] - n_frames + 1  # places where a clip can start
        self._cumulative = np.cumsum(self.probabilities())
        self.length = len(self._stored) if length is None or not training else length
        self._make_caches()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        return self.clips([operator.index(index)]).frames[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """What a DataLoader calls for a batch."""
        return list(self.clips(indices).frames)

    def clips(self, indices: Sequence[int] | Tensor) -> VideoClips:
        """The clips of these indices (B,); IndexError where one is not in [0, len(self))."""
        index = np.asarray(indices, dtype=np.int64)
        outside = index[(index < 0) | (index >= self.length)]
        if len(outside):
            raise IndexError(f"index must be in [0, {self.length}), got {outside[0]}")
        clips, starts, mirrored = self._chosen(index)
        frames = np.empty((len(index), self.n_frames, *self.shards.shape), np.uint8)
        self.shards.gather(clips, starts, self.n_frames, frames)
        if self.mirror:
            frames[mirrored] = frames[mirrored, :, :, ::-1]
        batch = torch.from_numpy(frames).permute(0, 1, 4, 2, 3)
        return VideoClips(batch, torch.from_numpy(clips), torch.from_numpy(starts), torch.from_numpy(mirrored))

    def fingerprint(self) -> int:
        """CRC-32 of what the clips are cut from: it tells one data set from another."""
        return zlib.crc32("".join(shard.sha256 for shard in self.shards.shards).encode())

    def probabilities(self) -> npt.NDArray[np.float64]:
        """How likely each stored clip of at least n_frames is to be drawn when draws are independent, (N,)."""
        return np.full(len(self._stored), 1 / len(self._stored))

    def _chosen(self, index: Indices) -> tuple[Indices, Indices, npt.NDArray[np.bool_]]:
        """Stored clip, start and mirroring of every index (B,)."""
        blocks, rows = np.divmod(index, _DRAWN_AT_ONCE)
        if len(blocks) and (blocks == blocks[0]).all():
            return tuple(draws[rows] for draws in self._draws(int(blocks[0])))  # type: ignore[return-value]
        drawn = [self._draws(int(block)) for block in blocks]
        parts = [[draws[k][row] for draws, row in zip(drawn, rows, strict=True)] for k in range(3)]
        return np.array(parts[0], np.int64), np.array(parts[1], np.int64), np.array(parts[2], np.bool_)

    def _draw_block(self, block: int) -> tuple[Indices, Indices, npt.NDArray[np.bool_]]:
        index = block * _DRAWN_AT_ONCE + np.arange(_DRAWN_AT_ONCE)
        words = self._words(index, _DRAWS)
        if self.sampling == "independent":
            place = np.searchsorted(self._cumulative, words[:, 0] / 2**32 * self._cumulative[-1], side="right")
        else:
            epochs, positions = np.divmod(index, len(self._stored))
            place = np.empty_like(index)
            for epoch in np.unique(epochs):
                here = epochs == epoch
                place[here] = self._order(int(epoch))[positions[here]]
        random = self.starts == "random"
        starts = (words[:, 1] * self._room[place]) >> 32 if random else np.zeros_like(index)
        mirrored = (words[:, 2] >> 31).astype(np.bool_) & self.mirror
        return self._stored[place], starts, mirrored

    def _epoch_order(self, epoch: int) -> Indices:
        """A permutation of 0 .. N - 1."""
        places = np.arange(len(self._stored))
        if self.test_in_order and self.fixed:
            return places
        words = self._words(places, _ORDER, epoch)
        return np.lexsort((words[:, 1], words[:, 0]))

    def _words(self, index: Indices, stream: int, epoch: int = 0) -> Indices:
        """Four random 32-bit words for every index: (B, 4) int64."""
        low = torch.from_numpy(index & 0xFFFFFFFF)
        high = torch.from_numpy(index >> 32)
        # a permutation's index is below 2**32, so an epoch has its counter word to itself
        counter = (low, high, epoch & 0xFFFFFFFF, stream | epoch >> 32 << 1)
        return philox4x32(counter, (self.seed & 0xFFFFFFFF, self.seed >> 32)).numpy()

    def _make_caches(self) -> None:
        self._draws = functools.lru_cache(maxsize=4)(self._draw_block)
        self._order = functools.lru_cache(maxsize=2)(self._epoch_order)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name not in ("_draws", "_order")}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._make_caches()


def _held_out(sources: Sequence[str], fraction: float) -> set[str]:
    """The first of the sources by the SHA-256 of their names: which ones does not change with the shards."""
    names = sorted(set(sources), key=lambda name: hashlib.sha256(name.encode(errors="surrogateescape")).digest())
    return set(names[: max(round(fraction * len(names)), 1)])
