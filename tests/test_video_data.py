"""From a data set's own files to a trained and evaluated model, through the command line as a user types it.

Sources in the published formats, made of the real clips where they are and of synthetic ones elsewhere.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
from bair_files import REAL, BairClip, random_clips, real_clips, write_clips
from click.testing import CliRunner
from PIL import Image
from shard_files import random_clips as clips_of
from shard_files import write_shards
from tiny_run import CONFIG, TRAINING
from video_files import moving_frames, write_kth, write_video

from svg_fast.cli import cli
from svg_fast.data import BAIR, KTH, VideoShards
from svg_fast.training import CheckpointError, TrainConfig, train

SMALL = {
    **{name: getattr(CONFIG, name) for name in ("nf", "g_dim", "z_dim", "rnn_size", "n_past", "n_future")},
    **{name: getattr(TRAINING, name) for name in ("n_eval", "n_samples", "threads", "device")},
    "backbone": "dcgan",
    "niter": 1,
    "epoch_size": 2,
    "batch_size": 3,
}
OPTIONS = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def call(*arguments: object, status: int = 0) -> str:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == status, done.output
    return done.output


def grey_videos() -> list[npt.NDArray[np.uint8]]:
    """Six videos (40, 120, 160, 1): KTH's, enlarged again to their published size, or synthetic ones."""
    if not REAL.exists():
        return [moving_frames(40, seed=k) for k in range(6)]
    with np.load(REAL) as clips:
        small = [clips[name][..., 0] for name in sorted(clips) if name.startswith("kth_")]
    large = [[np.asarray(Image.fromarray(frame).resize((160, 120))) for frame in clip] for clip in small]
    return [np.array(clip)[..., None] for clip in large]


@pytest.fixture(scope="module")
def kth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("KTH")
    videos = ["person01_boxing_d1", "person20_boxing_d2", "person02_running_d4", "person21_walking_d1"]
    videos += ["person25_boxing_d3", "person24_running_d1"]
    for video, frames in zip(videos, grey_videos(), strict=True):
        write_kth(root / video.split("_")[1] / f"{video}_uncomp.avi", frames)
    lines = [f"{video}\t\tframes\t1-{20 + k}, {15 + k}-40" for k, video in enumerate(videos)]
    (root / "00sequences.txt").write_text("\r\n".join(["Sequences", "", *lines]))
    return root


@pytest.fixture(scope="module")
def bair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[BairClip]]:
    root = tmp_path_factory.mktemp("BAIR")
    clips = real_clips() if REAL.exists() else random_clips(10, 30)
    write_clips(root / "train" / "traj_0_to_3.tfrecords", clips[:4])
    write_clips(root / "train" / "traj_4_to_6.tfrecords", clips[4:7])
    write_clips(root / "test" / "traj_0_to_2.tfrecords", clips[7:])
    return root, clips


def test_kth(kth: Path, tmp_path: Path) -> None:
    root = tmp_path / "kth64"
    printed = call("data", "convert", "kth", kth, root)
    assert f"svg-fast train kth-lp --data-root {root}" in printed
    data = KTH(root, "test", 12)
    assert sorted(set(data.shards.sources)) == [
        f"{action}/person{person}_{action}_d{scenario}_uncomp.avi"
        for action, person, scenario in (("boxing", 25, 3), ("running", 24, 1), ("walking", 21, 1))
    ]
    train_clips = KTH(root, "train", 12, length=100).clips(range(100))
    assert train_clips.frames.shape == (100, 12, 1, 64, 64)
    for preset in ("kth-fp", "kth-det"):
        call("train", preset, "--data-root", root, "--log-dir", tmp_path / preset, *OPTIONS)
    checkpoints = sorted(tmp_path.glob("kth-*/checkpoints/*.safetensors"))
    assert len(checkpoints) == 2
    out = tmp_path / "evaluation"
    call("evaluate", *checkpoints, "--out", out, "--n-samples", 2, "--n-eval", 6, "--n-pictures", 2, "--threads", 1)
    protocol = json.loads((out / "svg-fp.json").read_text())["protocol"]
    assert (protocol["dataset"], protocol["n_clips"]) == ("kth", 6)
    assert (out / "report.html").exists()


def test_bair(bair: tuple[Path, list[BairClip]], tmp_path: Path) -> None:
    source, clips = bair
    root = tmp_path / "bair64"
    call("data", "convert", "bair", source, root, "--workers", 1)
    data = BAIR(root, "train", 12)
    stored = {data.shards.sources[k] + str(k): data.shards.frames(k) for k in range(len(data.shards))}
    assert all(np.array_equal(a, b.frames) for a, b in zip(stored.values(), clips[:7], strict=True))
    assert np.array_equal(data.shards.array(5, "action"), clips[5].action)
    assert np.array_equal(data.shards.array(5, "endeffector_pos"), clips[5].position)
    test = BAIR(root, "test", 20).clips(range(3))
    assert torch.equal(
        test.frames, torch.from_numpy(np.stack([c.frames[:20] for c in clips[7:]])).permute(0, 1, 4, 2, 3)
    )
    call("train", "bair-lp", "--data-root", root, "--log-dir", tmp_path / "run", *OPTIONS)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("*.safetensors")
    out = tmp_path / "evaluation"
    call("evaluate", checkpoint, "--out", out, "--n-samples", 2, "--n-eval", 8, "--n-pictures", 0, "--threads", 1)
    assert json.loads((out / "svg-lp.json").read_text())["protocol"]["n_clips"] == 3
    call(
        "sample",
        checkpoint,
        "--data-root",
        root,
        "--out",
        tmp_path / "f.npy",
        "--n-clips",
        2,
        "--n-samples",
        1,
        "--threads",
        1,
    )
    with Image.open(tmp_path / "f.png") as strip:
        assert strip.mode == "RGB"


def test_videos_of_any_kind(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for k in range(3):
        write_video(folder / f"clip {k} ü.mp4", moving_frames(12, 48, 64, 3, seed=k), "mpeg4", pix_fmt="yuv420p")
    np.save(folder / "moving.npy", np.random.default_rng(0).integers(0, 256, (20, 4, 64, 64), dtype=np.uint8))
    (folder / "broken.avi").write_bytes(b"RIFF")
    printed = call(
        "data", "convert", "videos", folder, tmp_path / "out", "--channels", 1, "--test-fraction", 0.5, status=3
    )
    assert "broken.avi" in printed
    assert sum(VideoShards(tmp_path / "out", split, 12).length for split in ("train", "test")) == 7
    printed = call("data", "inspect", tmp_path / "out", "--verify")
    assert "broken.avi" in printed
    call(
        *("train", "smmnist-lp", "--dataset", "videos", "--data-root", tmp_path / "out", "--log-dir", tmp_path / "run"),
        *(*OPTIONS, "--mirror"),
    )


def small(root: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {"dataset": "videos", "data_root": root, "batch_size": 3, **changes}
    return replace(TRAINING, **settings)


def test_a_resumed_run_sees_the_clips_that_an_undisturbed_one_sees(tmp_path: Path) -> None:
    """Stopped after one of two epochs: the parameters at the end are the same bits."""
    named = [(f"v{k}", clip) for k, clip in enumerate(clips_of(9, 4, 6, 5, 11, size=64))]
    root = write_shards(tmp_path / "shards", "videos", {"train": [named], "test": [named]})
    for run, epochs in (("whole", [2]), ("stopped", [1, 2])):
        for k, niter in enumerate(epochs):
            train(CONFIG, small(root, niter=niter, mirror=True), tmp_path / run, resume=k > 0)
    files = [max((tmp_path / run / "checkpoints").glob("*.safetensors")) for run in ("whole", "stopped")]
    whole, stopped = map(safetensors.torch.load_file, files)
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_data_that_do_not_fit_are_named(tmp_path: Path) -> None:
    named = [(f"v{k}", clip) for k, clip in enumerate(clips_of(9, 4, size=64, channels=3))]
    root = write_shards(tmp_path / "shards", "videos", {"train": [named], "test": [named]})
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, r"the model wants frames of \(height, width, channels\) = \(64, 64, 1\), got \(64, 64, 3\)"),
        ({"dataset": "kth"}, "must hold shards of kth, got videos"),
        ({"data_root": None}, "videos needs --data-root, a folder that `svg-fast data convert videos` made"),
        ({"data_root": tmp_path}, r"no manifest\.json in"),
    ]
    for changes, message in wrong:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            train(CONFIG, small(root, **changes), tmp_path / "run")
    train(replace(CONFIG, channels=3), small(root, niter=1, epoch_size=1), tmp_path / "run")
    other = write_shards(tmp_path / "other", "videos", {"train": [named[:1]], "test": [named]})
    with pytest.raises(CheckpointError, match="the data: another data_root"):
        train(replace(CONFIG, channels=3), small(other, niter=1, epoch_size=1), tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="batch statistics are undefined for a batch of one clip"):
        train(replace(CONFIG, channels=3), small(root, n_eval=6), tmp_path / "another")
    with pytest.raises(ValueError, match="must hold test clips of 12 frames, got none longer than 9"):
        train(replace(CONFIG, channels=3), small(root, n_eval=12), tmp_path / "another")
