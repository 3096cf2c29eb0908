"""What is written as a published checkpoint runs as the published modules do; conversions keep the model."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import OracleSVG
from published_standins import installed
from test_parity import SMALL, pair, relative
from tiny_run import CONFIG, TRAINING, save

from svg_fast import SVG
from svg_fast.compat import convert, load_published, read_options, save_published

TOLERANCE = 1e-9


@pytest.fixture(autouse=True)
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with installed(monkeypatch, nf=SMALL.nf):
        yield


def opened_by_a_script(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=False)


def run_script(tree: dict[str, Any], frames: torch.Tensor, n_future: int) -> torch.Tensor:
    """Generation as the SVG-LP script does it with the modules of a file: frames (B, n_past, ...) -> (B, T, ...)."""
    opt, x = tree["opt"], list(frames.unbind(1))
    for name in ("encoder", "decoder"):
        tree[name].train()
    for name in ("frame_predictor", "posterior", "prior"):
        tree[name].batch_size = len(frames)
        tree[name].hidden = [(h.double(), c.double()) for h, c in tree[name].init_hidden()]
    video = [x[0]]
    for i in range(1, len(x) + n_future):
        h, skips = tree["encoder"](video[-1])
        if opt.last_frame_skip or i < len(x):
            skip = skips
        if i < len(x):
            z, _, _ = tree["posterior"](tree["encoder"](x[i])[0])
            tree["prior"](h)
            tree["frame_predictor"](torch.cat([h, z], 1))
            video.append(x[i])
        else:
            z, _, _ = tree["prior"](h)
            video.append(tree["decoder"]([tree["frame_predictor"](torch.cat([h, z], 1)), skip]))
    return torch.stack(video, 1)


@pytest.mark.parametrize("backbone", ["dcgan", "vgg"])
@pytest.mark.parametrize("image_size", [64, 128])
def test_a_script_generates_the_same_frames(tmp_path: Path, backbone: Any, image_size: Any) -> None:
    model, _ = pair(replace(SMALL, n_past=3, backbone=backbone, image_size=image_size))
    save_published(model, tmp_path / "model.pth", {"batch_size": 2})
    tree = opened_by_a_script(tmp_path / "model.pth")
    assert type(tree["encoder"]) is sys.modules[f"models.{backbone}_{image_size}"].encoder
    assert not any(tree[name].training for name in ("encoder", "decoder", "frame_predictor", "posterior", "prior"))

    frames = torch.rand(2, 3, 1, image_size, image_size, dtype=torch.float64)
    eps: list[torch.Tensor] = []

    def noted(mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
        eps.append(torch.randn_like(mu))
        return mu + eps[-1] * (logvar / 2).exp()

    tree["posterior"].reparameterize = tree["prior"].reparameterize = noted
    with torch.no_grad():
        wanted = run_script(tree, frames, 2)
    noise = torch.stack([eps[0], eps[2], *eps[4:]])[:, None]  # while conditioning the prior's noise has no effect
    assert relative(model.sample(frames, 2, eps=noise)[0], wanted) < TOLERANCE


@pytest.mark.parametrize("variant", ["lp", "fp", "det"])
def test_there_and_back(tmp_path: Path, variant: Any) -> None:
    model, _ = pair(replace(SMALL, variant=variant, n_past=3, last_frame_skip=True, beta=1e-6))
    model.encoder.register_forward_hook(lambda *_: None)  # which cannot be pickled
    before = torch.get_rng_state()
    save_published(model, tmp_path / "model.pth", {"dataset": "kth", "lr": 8e-4})
    again = load_published(tmp_path / "model.pth")
    assert torch.equal(torch.get_rng_state(), before)
    assert again.config == model.config
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    options = read_options(tmp_path / "model.pth")
    assert {
        "dataset": "kth",
        "lr": 8e-4,
        "optimizer": "adam",
        "model": "dcgan",
        "max_step": 4,
    }.items() <= options.items()
    save_published(again, tmp_path / "again.pth", options)
    assert read_options(tmp_path / "again.pth") == options


def test_attributes_are_the_published_ones(tmp_path: Path) -> None:
    model = SVG(SMALL)
    save_published(model, tmp_path / "model.pth", {"batch_size": 7})
    tree = opened_by_a_script(tmp_path / "model.pth")
    script = sys.modules["models.dcgan_64"].encoder(SMALL.g_dim, 1)
    assert repr(tree["encoder"]) == repr(script)
    assert repr(tree["decoder"]) == repr(sys.modules["models.dcgan_64"].decoder(SMALL.g_dim, 1))
    for name, inputs, layers in (("frame_predictor", 9, 2), ("posterior", 6, 1), ("prior", 6, 1)):
        net = tree[name]
        assert (net.input_size, net.hidden_size, net.n_layers, net.batch_size) == (inputs, 5, layers, 7)
        assert [(len(h), len(c)) for h, c in net.hidden] == [(7, 7)] * layers
    assert (tree["frame_predictor"].output_size, tree["prior"].output_size) == (SMALL.g_dim, SMALL.z_dim)
    assert isinstance(tree["opt"], Namespace)
    assert tree["opt"].optimizer is torch.optim.Adam
    oracle = OracleSVG(SMALL)
    oracle.encoder.load_state_dict(tree["encoder"].state_dict())


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"skip": "paper"}, {}, 'the published scripts know no skip="paper"'),
        ({}, {"z_dim": 12}, "the option z_dim must be the model's, 3, got 12"),
        (
            {},
            {"data_root": Path("data")},
            r"options must be Python's numbers, strings or None, got PosixPath\('data'\)",
        ),
        ({}, {"lr": np.float64(0.002)}, r"options must be Python's .* got np.float64\(0.002\) for lr"),
        ({"z_dim": np.int64(3)}, {}, r"options must be Python's .* got np.int64\(3\) for z_dim"),
    ],
)
def test_what_the_scripts_cannot_express(
    tmp_path: Path, change: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        save_published(SVG(replace(SMALL, **change)), tmp_path / "model.pth", options)
    assert not any(tmp_path.iterdir())


def same(a: SVG, b: SVG) -> bool:
    state = b.state_dict()
    return a.config == b.config and all(torch.equal(state[name], t) for name, t in a.state_dict().items())


def test_convert(tmp_path: Path) -> None:
    model = SVG(SMALL)
    save_published(model, tmp_path / "model.pth")
    assert convert(tmp_path / "model.pth", tmp_path / "hub") == tmp_path / "hub"
    assert same(SVG.from_pretrained(tmp_path / "hub"), model)
    assert convert(str(tmp_path / "hub"), str(tmp_path / "back.pth")) == tmp_path / "back.pth"
    assert same(load_published(tmp_path / "back.pth"), model)
    convert("smmnist-1digit-lp", tmp_path / "shipped.pth")
    assert same(load_published(tmp_path / "shipped.pth"), SVG.from_pretrained("smmnist-1digit-lp"))


def test_convert_a_training_checkpoint(tmp_path: Path) -> None:
    model = SVG(CONFIG)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(2, 4, 1, 64, 64)).loss.backward()
    optimizer.step()
    run = save(tmp_path, 3, model, optimizer, torch.Generator(), TRAINING, origin=5)
    convert(run, tmp_path / "hub")
    assert same(SVG.from_pretrained(tmp_path / "hub"), model)
    convert(run, tmp_path / "narrow", torch.float16)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("narrow", "hub")]
    assert sizes[0] < sizes[1]
    with pytest.raises(ValueError, match=r"dtype is of a folder .*, got torch.float16 for model.pth"):
        convert(run, tmp_path / "model.pth", torch.float16)
    convert(run, tmp_path / "model.pth")
    assert same(load_published(tmp_path / "model.pth"), model)
    options = read_options(tmp_path / "model.pth")
    assert {
        "num_digits": 1,
        "batch_size": 2,
        "niter": 2,
        "epoch_size": 6,
        "dataset": "smmnist",
    }.items() <= options.items()


def test_the_documented_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "published.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["video"].shape == (1, 2, 15, 1, 64, 64)
    assert same(names["model"], load_published("model.pth"))
