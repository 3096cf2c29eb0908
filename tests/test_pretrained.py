"""Models in the hub's format: written, read again, and refused with a sentence where something is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch
from test_parity import SMALL, pair

import svg_fast
from svg_fast import SVG
from svg_fast.data import MovingMNIST, load_digits
from svg_fast.models import pretrained


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    SVG(SMALL).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", ["lp", "fp", "det"])
def test_there_and_back(tmp_path: Path, variant: Any, dtype: torch.dtype) -> None:
    # the layers of a net that the variant lacks can be any
    layers = {"lp": 1, "fp": 500, "det": 500}[variant]
    config = replace(SMALL, variant=variant, generation_statistics="running", time_chunk=3, last_frame_skip=True)
    config = replace(config, prior_rnn_layers=layers)
    model, _ = pair(config, dtype)
    before = torch.get_rng_state()
    model.save_pretrained(tmp_path / "new" / "model")
    again = SVG.from_pretrained(str(tmp_path / "new" / "model"))
    assert torch.equal(torch.get_rng_state(), before)
    assert asdict(again.config) == asdict(config)
    assert not again.training
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name
        assert state[name].dtype == tensor.dtype


def test_files_are_those_of_the_hub(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    with safetensors.safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    settings = json.loads((folder / "config.json").read_text())
    assert asdict(SMALL).items() <= settings.items()
    assert settings["format"] == "svg_fast.model"


def test_narrow_weights_become_float32(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    narrow = {name: t.bfloat16() if t.is_floating_point() else t for name, t in tensors.items()}
    safetensors.torch.save_file(narrow, folder / "model.safetensors")
    weight = SVG.from_pretrained(folder).encoder.state_dict()["c1.main.0.weight"]
    assert torch.equal(weight, narrow["encoder.c1.main.0.weight"].float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_stored_narrow_and_statistics_are_not(tmp_path: Path, dtype: torch.dtype) -> None:
    model, _ = pair(SMALL, torch.float32)
    model(torch.rand(3, 5, 1, 64, 64))  # statistics that are not whole numbers
    model.save_pretrained(tmp_path / "narrow", dtype)
    model.save_pretrained(tmp_path / "whole")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("narrow", "whole")]
    assert sizes[0] < 0.65 * sizes[1]  # a small model has many biases
    state = SVG.from_pretrained(tmp_path / "narrow").state_dict()
    for name, tensor in model.state_dict().items():
        wanted = tensor.to(dtype).to(tensor.dtype) if tensor.dim() > 1 else tensor
        assert torch.equal(state[name], wanted), name
        assert state[name].dtype == tensor.dtype


def test_weights_that_a_narrow_type_cannot_hold(tmp_path: Path) -> None:
    model = SVG(SMALL)
    with torch.no_grad():
        model.frame_predictor.embed.weight[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"frame_predictor.embed.weight has numbers up to 1e\+05, too great for .*16"):
        model.save_pretrained(tmp_path / "model", torch.float16)
    with pytest.raises(ValueError, match=r"dtype must be of torch.float64, .*, got torch.int8"):
        model.save_pretrained(tmp_path / "model", torch.int8)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", list(pretrained.shipped()))
def test_a_model_of_the_library_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = svg_fast.from_pretrained(name)
    assert model.config == svg_fast.preset(name)
    assert sum(path.stat().st_size for path in pretrained.shipped()[name].iterdir()) < 4_000_000
    frames = MovingMNIST(load_digits(None, "test"), 15, num_digits=1, seed=2).clips(range(32)).frames / 255
    with torch.no_grad():
        error = float(model(frames).mse_per_step[4:].mean())  # it was trained on MNIST's digits, these are others
    assert error < 0.6 * float((frames[:, 5:] - frames[:, 4:-1]).square().mean())
    SVG(SMALL).save_pretrained(tmp_path / name)  # a folder of the same name is what its owner means
    assert svg_fast.from_pretrained(name).config == SMALL


def test_some_model_comes_with_the_library() -> None:
    assert "smmnist-1digit-lp" in pretrained.shipped()


def test_a_failed_write_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        SVG(SMALL).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_cut_off_anywhere(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    for size in {0, 4, 100, *range(1024, len(data), len(data) // 20), len(data) - 1}:
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match="is truncated or not a safetensors file"):
            SVG.from_pretrained(folder)


def _config(**change: Any) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        settings = json.loads((folder / "config.json").read_text()) | change
        (folder / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if v != "absent"}))

    return rewrite


def _tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        change(tensors)
        safetensors.torch.save_file(tensors, folder / "model.safetensors")

    return rewrite


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged, or not the settings"),
        (
            lambda folder: (folder / "config.json").write_text("[" * 10**5),
            "config.json is damaged, or not the settings",
        ),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json is damaged, or not the settings"),
        (_config(format="absent"), "config.json is not the settings of a model of svg_fast"),
        (_config(version="x"), "config.json is not the settings of a model of svg_fast"),
        (_config(version=2), "config.json has format 2, this svg_fast reads up to 1: upgrade it"),
        (_config(colour="red"), "config.json has the setting 'colour', which this svg_fast does not know: upgrade it"),
        (_config(nf="2"), "a setting that is not allowed: nf must be int, got '2'"),
        (_config(variant="vae"), "a setting that is not allowed: variant must be one of"),
        (_config(g_dim=7), r"encoder.c5.0.weight must have shape \[7, 16, 4, 4\], got \[6, 16, 4, 4\]"),
        (_config(rnn_size=2**62), "does not hold the model of its config.json"),
        (_config(nf=None), "does not hold the model of its config.json|not allowed"),
        (_config(rnn_size=2**63), "config.json: no model can have these sizes$"),
        (_config(prior_rnn_layers=10**9), "1000000003 LSTM layers cannot be made of"),
        (_config(prior_rnn_layers=30), "33 LSTM layers cannot be made of"),
        (_config(variant="fp"), "'prior.embed.bias' is not a tensor of the model"),
        (_tensors(lambda tensors: tensors.pop("prior.embed.bias")), "prior.embed.bias is missing"),
        (_tensors(lambda tensors: tensors.update(x=torch.zeros(1))), "'x' is not a tensor of the model"),
    ],
)
def test_damage_is_a_sentence(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        SVG.from_pretrained(folder)
    assert str(caught.value).startswith(str(folder))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e5m2])
def test_weights_that_are_not_the_numbers_they_stand_for(folder: Path, dtype: torch.dtype) -> None:
    name = "prior.embed.bias"
    _tensors(lambda tensors: tensors.update({name: tensors[name].to(dtype)}))(folder)
    with pytest.raises(ValueError, match=rf"{name} must be of torch.float64, .*torch.bfloat16, got {dtype}$"):
        SVG.from_pretrained(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_is_missing(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"must hold model.safetensors and config.json, {name} is missing"):
        SVG.from_pretrained(folder)


def test_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        ImportError,
        match=r"someone/svg is not a folder, nor one of smmnist-1digit-lp, .* huggingface_hub, which is not installed",
    ):
        SVG.from_pretrained("someone/svg")
    asked = []

    def snapshot_download(repository: str, *, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(folder)

    hub = ModuleType("huggingface_hub")
    hub.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert SVG.from_pretrained("someone/svg").config == SMALL
    assert asked == [("someone/svg", [pretrained.WEIGHTS, pretrained.CONFIG])]
