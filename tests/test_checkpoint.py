"""Damaged, foreign and future checkpoints are refused with a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_run import CONFIG, TRAINING, save

from svg_fast import SVG
from svg_fast.training import CheckpointError, checkpoint
from svg_fast.training.sharding import load_optimizer_state


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = SVG(CONFIG)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(2, 4, 1, 64, 64)).loss.backward()
    optimizer.step()
    return save(tmp_path, 7, model, optimizer, torch.Generator(), TRAINING, origin=5)


def rewrite(path: Path, **header: object) -> None:
    """The same file with some of its metadata changed."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() | {key: json.dumps(value) for key, value in header.items()}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    safetensors.torch.save_file(tensors, path, metadata)


def test_round_trip(saved: Path) -> None:
    loaded = checkpoint.load(saved)
    assert (loaded.step, loaded.config, loaded.training, loaded.origin) == (7, CONFIG, TRAINING, 5)
    model = SVG(CONFIG)
    optimizer = torch.optim.Adam(model.parameters(), lr=TRAINING.lr)
    generator = torch.Generator()
    model.load_state_dict(loaded.parameters())
    load_optimizer_state(model, optimizer, loaded.adam())
    generator.set_state(loaded.tensors["generator"])
    again = save(saved.parent, 8, model, optimizer, generator, TRAINING, origin=5)
    tensors = checkpoint.load(again).tensors
    assert tensors.keys() == loaded.tensors.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in loaded.tensors.items())


def test_truncated_anywhere(saved: Path) -> None:
    data = saved.read_bytes()
    for size in {0, 4, 100, *range(1024, len(data), len(data) // 40), len(data) - 1}:
        saved.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"truncated or not a checkpoint"):
            checkpoint.load(saved)


def test_not_a_checkpoint(saved: Path) -> None:
    torch.save({"pickled": 1}, saved)
    with pytest.raises(CheckpointError, match="truncated or not a checkpoint"):
        checkpoint.load(saved)
    safetensors.torch.save_file({"x": torch.zeros(1)}, saved)
    with pytest.raises(CheckpointError, match="a safetensors file, but not a checkpoint of svg_fast"):
        checkpoint.load(saved)
    with pytest.raises(FileNotFoundError):
        checkpoint.load(saved.with_name("missing.safetensors"))


def test_from_a_newer_version(saved: Path) -> None:
    rewrite(saved, version=3)
    with pytest.raises(CheckpointError, match="has checkpoint format 3, this svg_fast reads up to 2: upgrade it"):
        checkpoint.load(saved)


def test_from_an_older_version(saved: Path) -> None:
    """Which trained on digits alone."""
    rewrite(saved, version=1, digits=6)
    assert checkpoint.load(saved).origin == 6


@pytest.mark.parametrize(
    "header",
    [
        {"config": {"variant": "vae"}},
        {"config": {"nf": 2.5}},
        {"config": {"last_frame_skip": "no"}},
        {"config": {"nf": 2**62}},
        {"config": {"predictor_rnn_layers": 10**5}},
        {"config": []},
        {"step": None},
        {"step": float("inf")},
        {"version": "x"},
        {"version": None},
        {"training": {"speed": 3}},
    ],
    ids=str,
)
def test_damaged_header(saved: Path, header: dict[str, object]) -> None:
    rewrite(saved, **header)
    with pytest.raises(CheckpointError, match="has a damaged header"):
        checkpoint.load(saved)


@pytest.mark.parametrize("header", [{"config": {"nf": 2**20}}, {"config": {"variant": "fp"}}, {"step": -5}], ids=str)
def test_header_that_its_tensors_contradict(saved: Path, header: dict[str, object]) -> None:
    """Refused before anything of the claimed size is allocated."""
    rewrite(saved, **header)
    with pytest.raises(CheckpointError, match="does not hold what its header says"):
        checkpoint.load(saved)


def test_a_missing_tensor(saved: Path) -> None:
    with safetensors.safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del tensors["optimizer.exp_avg.prior.embed.bias"]
    safetensors.torch.save_file(tensors, saved, metadata)
    with pytest.raises(CheckpointError, match=r"first: optimizer\.exp_avg\.prior\.embed\.bias"):
        checkpoint.load(saved)


@pytest.mark.parametrize("change", [torch.zeros_like, torch.Tensor.float])
def test_a_generator_that_is_none(saved: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with safetensors.safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    safetensors.torch.save_file({**tensors, "generator": change(tensors["generator"])}, saved, metadata)
    with pytest.raises(CheckpointError, match=r"does not hold what its header says \(first: generator\)"):
        checkpoint.load(saved)


def test_of_another_configuration(saved: Path) -> None:
    loaded = checkpoint.load(saved)
    checkpoint.check_same(loaded, CONFIG, replace(TRAINING, niter=99, checkpoint_every=1), origin=5)
    checkpoint.check_same(loaded, replace(CONFIG, time_chunk=1, recompute=True), TRAINING, origin=5)
    with pytest.raises(
        CheckpointError, match=r"another configuration \(z_dim: 2, not 3; the data: another data_root\)"
    ):
        checkpoint.check_same(loaded, replace(CONFIG, z_dim=3), TRAINING, origin=6)
