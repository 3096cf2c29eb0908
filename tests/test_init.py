"""Runs that begin with the parameters of another model."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import CONFIG, TRAINING

from svg_fast import SVG
from svg_fast.training import CheckpointError, TrainConfig, load_model, train
from svg_fast.training.data import make_clips

STILL = replace(TRAINING, niter=1, epoch_size=2, lr=1e-30, checkpoint_every=0)  # no parameter moves


def newest(log_dir: Path) -> Path:
    return max((log_dir / "checkpoints").glob("*.safetensors"))


def begun(tmp_path: Path, variant: Any, init: Path | None, training: TrainConfig = STILL) -> Path:
    log_dir = tmp_path / f"{variant}-run"
    train(replace(CONFIG, variant=variant), replace(training, init=init), log_dir)
    return newest(log_dir)


@pytest.fixture
def trained(tmp_path: Path) -> dict[str, Path]:
    """A checkpoint of a short run of each variant."""
    found = {}
    for variant in ("lp", "fp", "det"):
        train(replace(CONFIG, variant=variant), replace(TRAINING, niter=1, seed=5), tmp_path / variant)
        found[variant] = newest(tmp_path / variant)
    return found


@pytest.mark.parametrize("variant", ["lp", "fp", "det"])
@pytest.mark.parametrize("other", ["lp", "fp", "det"])
def test_every_variant_begins_with_every_other(
    tmp_path: Path, trained: dict[str, Path], variant: str, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "svg_fast")
    new = dict(load_model(begun(tmp_path / "new", variant, None)).named_parameters())
    found = dict(load_model(begun(tmp_path, variant, trained[other])).named_parameters())
    given = dict(load_model(trained[other]).named_parameters())
    anew = sorted({name.partition(".")[0] for name in found.keys() - given.keys()})
    assert (
        f"beginning with the parameters of {trained[other]}" + f"; anew: {', '.join(anew)}" * bool(anew) in caplog.text
    )
    embed = "frame_predictor.embed.weight"
    for name, parameter in found.items():
        if name == embed and "det" in (variant, other):
            g = CONFIG.g_dim
            assert torch.equal(parameter[:, :g], given[name][:, :g])
            assert torch.equal(parameter[:, g:], new[name][:, g:])
        else:
            wanted = (given if name in given else new)[name]
            torch.testing.assert_close(parameter, wanted, rtol=0, atol=1e-20, msg=name)


def test_the_first_loss_is_the_other_models(tmp_path: Path, trained: dict[str, Path]) -> None:
    begun(tmp_path, "det", trained["det"], replace(STILL, seed=9))
    first = (tmp_path / "det-run" / "losses.csv").read_text().splitlines()[1].split(",")
    model = load_model(trained["det"]).train()
    clips = make_clips(model.config, replace(STILL, seed=9), "train", 4).clips(range(STILL.batch_size))
    with torch.no_grad():
        loss = model(clips.frames).loss
    torch.testing.assert_close(float(first[1]), float(loss), rtol=1e-5, atol=0)


def test_a_folder_of_the_hub_serves_too(tmp_path: Path, trained: dict[str, Path]) -> None:
    model = load_model(trained["lp"])
    model.save_pretrained(tmp_path / "hub")
    found = load_model(begun(tmp_path, "lp", tmp_path / "hub"))
    assert all(torch.equal(p, q) for p, q in zip(found.parameters(), model.parameters(), strict=True))


def test_resumed_it_goes_on_from_its_own_checkpoint(tmp_path: Path, trained: dict[str, Path]) -> None:
    training = replace(TRAINING, init=trained["lp"])
    train(CONFIG, training, tmp_path / "whole")
    train(CONFIG, replace(training, niter=1), tmp_path / "parts")
    with pytest.raises(CheckpointError, match=r"init: .*, not None"):
        train(CONFIG, replace(training, init=None), tmp_path / "parts", resume=True)
    trained["lp"].unlink()  # what a run began with is not needed again
    train(CONFIG, training, tmp_path / "parts", resume=True)
    whole, parts = (load_model(newest(tmp_path / name)).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_models_that_do_not_fit(tmp_path: Path, trained: dict[str, Path]) -> None:
    wide = replace(CONFIG, rnn_size=6)
    with pytest.raises(ValueError, match=r"init must be a model of the same sizes: frame_predictor.* got \[.*lp"):
        train(wide, replace(STILL, init=trained["lp"]), tmp_path / "run")
    SVG(replace(CONFIG, channels=3)).save_pretrained(tmp_path / "rgb")
    with pytest.raises(ValueError, match=r"decoder.* must have shape .* got .*rgb"):
        train(CONFIG, replace(STILL, init=tmp_path / "rgb"), tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"nowhere.safetensors"):
        train(CONFIG, replace(STILL, init=tmp_path / "nowhere.safetensors"), tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
