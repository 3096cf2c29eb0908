"""svg-fast sample, evaluate, report, figure and convert on a model that a small run left."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny_run import CONFIG, TRAINING

from svg_fast import SVG
from svg_fast.cli import cli
from svg_fast.compat import load_published, save_published
from svg_fast.evaluation.results import load_json
from svg_fast.evaluation.sources import clips_for, load_clips, load_source
from svg_fast.training import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each variant."""
    found = {}
    for variant in ("lp", "det"):
        folder = tmp_path_factory.mktemp(variant)
        train(replace(CONFIG, variant=variant), replace(TRAINING, niter=1), folder)
        found[variant] = max((folder / "checkpoints").glob("*.safetensors"))
    return found


def call(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_sample(runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "futures.npy"
    options = ("--n-samples", 3, "--n-clips", 2, "--n-future", 6, "--threads", 1)
    printed = call("sample", runs["lp"], "--out", out, *options)
    assert all(str(out.with_suffix(suffix)) in printed for suffix in (".npy", ".png", ".gif"))
    video = np.load(out)
    assert (video.shape, video.dtype) == ((3, 2, 8, 64, 64, 1), np.uint8)
    source = load_source(runs["lp"])
    clips = clips_for(source, 2, 8, None, None)
    want = source.model.sample(clips[:, :2], 6, 3, seed=1)
    np.testing.assert_array_equal(video[..., 0], (want[:, :, :, 0] * 255).round().numpy())
    limited = call("sample", runs["lp"], "--out", tmp_path / "other.npy", *options, "--memory-limit", "1M")
    assert limited
    assert np.abs(np.load(tmp_path / "other.npy").astype(int) - video).max() <= 1
    call("sample", runs["lp"], "--out", out, *options, "--branch-at", 4, "--latents", "posterior", "--temperature", 0.5)
    branched = np.load(out)
    assert np.array_equal(branched[0, :, :4], branched[1, :, :4])
    assert not np.array_equal(branched[0, :, 4], branched[1, :, 4])


def test_sample_of_a_model_that_comes_with_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call("sample", "smmnist-1digit-lp", "--n-samples", 2, "--n-clips", 2, "--n-future", 5, "--threads", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.gif", "samples.npy", "samples.png"]
    assert np.load("samples.npy").shape == (2, 2, 10, 64, 64, 1)
    with pytest.raises(FileNotFoundError, match=r"smmnist-2digit-lp is no file .*, nor .* \(smmnist-1digit-lp\)"):
        call("sample", "smmnist-2digit-lp")


def test_evaluate_and_report(runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "evaluation"
    options = ("--n-samples", 3, "--n-clips", 4, "--n-eval", 6, "--metrics", "psnr,ssim,ssim_finn", "--threads", 1)
    printed = call("evaluate", runs["lp"], runs["det"], "--out", out, *options)
    assert str(out / "report.html") in printed
    found = {name: load_json(out / f"{name}.json") for name in ("svg-lp", "deterministic")}
    assert [e.protocol["n_samples"] for e in found.values()] == [3, 1]
    assert all(set(e.curves) == {"psnr", "ssim", "ssim_finn"} and e.bound is not None for e in found.values())
    assert found["svg-lp"].protocol["command"].startswith("svg-fast")
    with (out / "svg-lp.csv").open() as file:
        assert len(list(csv.reader(file))) == 1 + 3 * 3 * 4
    page = (out / "report.html").read_text()
    assert "SVG-LP" in page
    assert "data:image/gif" in page
    with Image.open(out / "curves.png") as image:
        assert image.width > 500
    again = tmp_path / "report"
    call("report", out / "svg-lp.json", out / "deterministic.json", "--out", again)
    assert (again / "report.html").exists()
    with pytest.raises(ValueError, match="models must have names of their own"):
        call("report", out / "svg-lp.json", out / "svg-lp.json", "--out", again)


def test_figures(runs: dict[str, Path], tmp_path: Path) -> None:
    small = ("--n-digits", 3, "--n-samples", 2, "--n-future", 6, "--threads", 1)
    printed = call("figure", "trajectory", runs["lp"], "--out", tmp_path / "trajectory.png", *small)
    assert "total variation distance" in printed
    printed = call("figure", "prior", runs["lp"], "--out", tmp_path / "prior.png", "--n-clips", 4, "--n-frames", 12)
    assert "sigma right after a hit" in printed
    small = ("--n-trajectories", 2, "--n-digits", 2, "--n-samples", 2, "--threads", 1)
    printed = call("figure", "motion", runs["lp"], runs["det"], "--out", tmp_path / "motion.png", *small)
    assert all(f"{name}: most frequent step is the true one" in printed for name in ("SVG-LP", "deterministic"))
    with pytest.raises(ValueError, match="models must have names of their own"):
        call("figure", "motion", runs["lp"], runs["lp"], "--out", tmp_path / "motion.png", *small)
    pictures = ("--n-samples", 2, "--n-clips", 2, "--n-eval", 6, "--baseline", runs["det"])
    call("figure", "samples", runs["lp"], "--out", tmp_path / "samples.png", *pictures)
    for name in ("trajectory.png", "motion.png", "prior.png", "samples.png"):
        with Image.open(tmp_path / name) as image:
            image.load()
    assert (tmp_path / "trajectory.csv").exists()
    assert (tmp_path / "prior.csv").exists()
    assert set(np.load(tmp_path / "samples.npz")) == {"truth", "deterministic", "best of 2", "random 1", "random 2"}
    with pytest.raises(ValueError, match="the folder of --out must exist"):
        call("figure", "velocity", "--out", tmp_path / "nowhere" / "velocity.png")
    with pytest.raises(ValueError, match="--clips does not fit"):
        call("figure", "prior", runs["lp"], "--out", tmp_path / "prior.png", "--clips", "x.npy")


def test_convert_there_and_back(runs: dict[str, Path], tmp_path: Path) -> None:
    model = SVG(replace(CONFIG, nf=64))
    save_published(model, tmp_path / "model.pth", {"num_digits": 1})
    call("convert", tmp_path / "model.pth", tmp_path / "hub")
    call("convert", tmp_path / "hub", tmp_path / "back.pth")
    names = model.state_dict()
    back = load_published(tmp_path / "back.pth").state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in names.items())
    published, hub = load_source(tmp_path / "model.pth"), load_source(tmp_path / "hub")
    assert published.training.num_digits == 1
    assert hub.model.config == published.model.config


def test_clips_of_a_file(tmp_path: Path) -> None:
    clips = np.random.default_rng(0).integers(0, 256, (3, 5, 8, 6, 3), dtype=np.uint8)
    np.save(tmp_path / "clips.npy", clips)
    found = load_clips(tmp_path / "clips.npy", 2, 4)
    assert np.array_equal(found.permute(0, 1, 3, 4, 2).numpy(), clips[:2, :4])
    np.save(tmp_path / "grey.npy", clips[..., 0])
    assert load_clips(tmp_path / "grey.npy", 9, 5).shape == (3, 5, 1, 8, 6)


class Hostile:
    def __reduce__(self) -> Any:
        return open, ("executed", "w")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((2, 9, 8, 8), dtype=np.float32), r"must hold uint8 .*, got float32 of shape \[2, 9, 8, 8\]"),
        (np.zeros((2, 3, 8, 8), dtype=np.uint8), r"must hold clips of at least 4 frames, got shape \[2, 3, 8, 8\]"),
        (np.array([Hostile()], dtype=object), "must be an .npy file of numbers"),
        (b"not an array", "must be an .npy file of numbers"),
        (b"", "must be an .npy file of numbers"),
    ],
)
def test_wrong_clips(content: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "clips.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        load_clips(path, 2, 4)
    assert not (tmp_path / "executed").exists()


def test_other_data_sets_want_their_clips(tmp_path: Path) -> None:
    model = SVG(replace(CONFIG, nf=64, n_past=10))
    save_published(model, tmp_path / "kth.pth", {"dataset": "kth"})
    with pytest.raises(ValueError, match="kth needs --data-root"):
        clips_for(load_source(tmp_path / "kth.pth"), 2, 12, None, None)


def test_json_of_another_tool_is_no_evaluation(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(ValueError, match="is not an evaluation"):
        call("report", tmp_path / "other.json", "--out", tmp_path / "report")
