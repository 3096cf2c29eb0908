"""Clips cut from shards: the published sampling rules against a plain simulation, epochs, processes, resuming."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from shard_files import random_clips, write_shards
from torch.utils.data import DataLoader

from svg_fast.data import BAIR, KTH, SharedBatches, VideoShards

LENGTHS = (6, 3, 9, 4, 5, 14, 4)  # of the stored clips; one is too short for four frames
USABLE = [0, 2, 3, 4, 5, 6]
CLIPS = random_clips(*LENGTHS, channels=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = [(f"clip{k}", clip) for k, clip in enumerate(CLIPS)]
    return write_shards(tmp_path_factory.mktemp("v"), "videos", {"train": [named[:3], named[3:]], "test": [named]})


@pytest.fixture(scope="module")
def kth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two actions, three videos, ranges of different numbers and lengths; one video has none long enough."""
    lengths = {
        "d/person01_boxing_d1_uncomp.avi": (6, 9, 2),
        "d/person02_boxing_d3_uncomp.avi": (5,),
        "d/person02_boxing_d4_uncomp.avi": (3, 3),
        "d/person01_walking_d1_uncomp.avi": (7, 5, 4, 4),
    }
    named = [(name, clip) for name, each in lengths.items() for clip in random_clips(*each)]
    return write_shards(tmp_path_factory.mktemp("k"), "kth", {"train": [named], "test": [named]})


def test_frames_are_those_of_the_stored_clip_at_its_start(root: Path) -> None:
    data = VideoShards(root, n_frames=4, seed=3, length=500)
    batch = data.clips(range(200))
    assert batch.frames.shape == (200, 4, 3, 8, 8)
    assert batch.frames.dtype == torch.uint8
    for frames, clip, start in zip(batch.frames, batch.clips.tolist(), batch.starts.tolist(), strict=True):
        assert np.array_equal(frames.permute(0, 2, 3, 1), CLIPS[clip][start : start + 4])
    assert data.too_short == 1
    assert set(batch.clips.tolist()) == set(USABLE)


def test_a_clip_depends_on_seed_and_index_alone(root: Path) -> None:
    data = VideoShards(root, n_frames=4, seed=3, mirror=True, length=2**62)
    index = [0, 5, 4095, 4096, 100_000, 2**40 + 7]
    together = data.clips(index)
    again = pickle.loads(pickle.dumps(data))
    for k, i in enumerate(index):
        alone = again.clips([i])
        assert torch.equal(alone.frames[0], together.frames[k])
        assert torch.equal(again[i], together.frames[k])
    other = VideoShards(root, n_frames=4, seed=4, mirror=True, length=2**62).clips(range(100))
    assert not torch.equal(other.starts, data.clips(range(100)).starts)


def test_each_epoch_has_every_clip_once_in_an_order_of_its_own(root: Path) -> None:
    data = VideoShards(root, n_frames=4, length=10**6)
    epochs = data.clips(range(6 * 2000)).clips.view(2000, 6)
    assert (epochs.sort().values == torch.tensor(USABLE)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 600  # of 720 orders
    places = Counter(epochs[:, 0].tolist())
    assert chisquare([places[clip] for clip in USABLE]).pvalue > 1e-3


def test_starts_are_uniform_where_the_frames_fit(root: Path) -> None:
    data = VideoShards(root, n_frames=4, length=10**6)
    batch = data.clips(range(12_000))
    starts = Counter(batch.starts[batch.clips == 5].tolist())
    assert sorted(starts) == list(range(11))
    assert chisquare(list(starts.values())).pvalue > 1e-3
    assert set(batch.starts[batch.clips == 3].tolist()) == {0}
    assert not VideoShards(root, n_frames=4, starts="first").clips(range(6)).starts.any()


def test_half_of_the_clips_are_mirrored(root: Path) -> None:
    data = VideoShards(root, n_frames=4, mirror=True, length=10**6)
    plain = VideoShards(root, n_frames=4, length=10**6).clips(range(2000))
    batch = data.clips(range(2000))
    assert 900 < batch.mirrored.sum() < 1100
    assert torch.equal(batch.frames[batch.mirrored], plain.frames[batch.mirrored].flip(-1))
    assert torch.equal(batch.frames[~batch.mirrored], plain.frames[~batch.mirrored])
    assert not VideoShards(root, "test", 4, mirror=True).clips(range(6)).mirrored.any()


def draw_as_published(ranges: dict[str, list[int]], n_frames: int, rng: np.random.Generator) -> tuple[str, int, int]:
    """One of the actions, of its videos, of its ranges, of the starts; anew where the range is too short."""
    while True:
        action = rng.choice(sorted({name.split("_")[1] for name in ranges}))
        video = rng.choice(sorted(name for name in ranges if name.split("_")[1] == action))
        k = rng.integers(len(ranges[video]))
        if ranges[video][k] >= n_frames:
            return str(video), int(k), int(rng.integers(ranges[video][k] - n_frames + 1))


def test_kth_draws_as_published(kth: Path) -> None:
    data = KTH(kth, n_frames=4, length=10**6)
    ranges: dict[str, list[int]] = {}
    ids = []
    for name, length in zip(data.shards.sources, data.shards.n_frames.tolist(), strict=True):
        ids.append((name, len(ranges.setdefault(name, []))))
        ranges[name].append(length)
    batch = data.clips(range(20_000))
    ours = Counter((*ids[clip], start) for clip, start in zip(batch.clips.tolist(), batch.starts.tolist(), strict=True))
    rng = np.random.default_rng(0)
    theirs = Counter(draw_as_published(ranges, 4, rng) for _ in range(20_000))
    assert set(ours) == set(theirs)
    # two samples of one distribution: their difference is of the size that the counts allow
    z = [(ours[key] - theirs[key]) / (ours[key] + theirs[key]) ** 0.5 for key in theirs]
    assert max(map(abs, z)) < 4.5


def test_bair_draws_as_published_and_tests_in_order(tmp_path: Path) -> None:
    named = [(f"r{k}", clip) for k, clip in enumerate(random_clips(*[5] * 40))]
    root = write_shards(tmp_path, "bair", {"train": [named], "test": [named]})
    batch = BAIR(root, n_frames=4, length=10**6).clips(range(8000))
    assert not batch.starts.any()
    counts = np.bincount(batch.clips)
    assert counts.std() > 5  # drawn with repeats, not dealt out
    assert chisquare(counts).pvalue > 1e-3
    test = BAIR(root, "test", 4, seed=9)
    assert test.clips(range(40)).clips.tolist() == list(range(40))


def test_test_clips_are_each_stored_clip_once(kth: Path) -> None:
    data = KTH(kth, "test", 4)
    everything = data.clips(range(len(data)))
    assert len(data) == 7
    assert len(set(everything.clips.tolist())) == 7
    assert torch.equal(KTH(kth, "test", 4).clips(range(7)).frames, everything.frames)
    with pytest.raises(IndexError, match=r"index must be in \[0, 7\), got 7"):
        data.clips([7])


def test_wrong_arguments_are_named(root: Path, kth: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"n_frames": 15}, "must hold train clips of 15 frames, got none longer than 14"),
        ({"sampling": "shuffled"}, "sampling must be one of epochs, independent"),
        ({"starts": "last"}, "starts one of random, first"),
        ({"seed": 2**64}, "seed in"),
        ({"n_frames": 0}, "n_frames and length must be at least 1"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            VideoShards(root, **arguments)
    with pytest.raises(ValueError, match="must hold shards of bair, got kth"):
        BAIR(kth)
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'val'"):
        VideoShards(root, "val")  # type: ignore[arg-type]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("stop", [23, 24, 30])
def test_processes_share_the_indices_without_overlap_or_loss(world_size: int, stop: int) -> None:
    for first in range(0, 14, 4):
        shares = [SharedBatches(stop, 4, first=first, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert sorted(i for share in shares for batch in share for i in batch) == list(range(first, stop))
        assert [len(list(share)) for share in shares] == [len(share) for share in shares]
        steps = max(len(share) for share in shares)
        for step in range(steps):  # and step by step they take the next indices, whatever their number
            taken = [i for share in shares if step < len(share) for i in list(share)[step]]
            begin = first + step * 4 * world_size
            assert taken == list(range(begin, min(begin + 4 * world_size, stop)))


def test_every_clip_of_every_epoch_once_over_processes_and_a_stop(root: Path) -> None:
    """One process for 9 steps, then three, each a copy of the data set: three epochs hold every clip three times."""
    data = VideoShards(root, n_frames=4, seed=5, length=18)
    seen = [
        i for batch, _ in zip(SharedBatches(18, 1), range(9), strict=False) for i in data.clips(batch).clips.tolist()
    ]
    for rank in range(3):
        again = pickle.loads(pickle.dumps(data))
        for batch in SharedBatches(18, 2, first=9, rank=rank, world_size=3):
            seen += again.clips(batch).clips.tolist()
    assert Counter(seen) == dict.fromkeys(USABLE, 3)


def test_a_data_loader_with_workers_gives_the_same_clips(root: Path) -> None:
    data = VideoShards(root, n_frames=4, seed=5, length=24)
    loader = DataLoader(data, batch_sampler=SharedBatches(24, 5), num_workers=2, multiprocessing_context="forkserver")
    frames = torch.cat(list(loader))
    assert torch.equal(frames, data.clips(range(24)).frames)
    with pytest.raises(ValueError, match="rank in"):
        SharedBatches(24, 5, rank=2, world_size=2)
