"""Published checkpoints load, in both file formats and as of 2018; their frames are those of their own networks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import OracleSVG
from published_standins import checkpoint, installed, modules, write_2018
from test_parity import relative
from torch import nn

from svg_fast import SVG
from svg_fast.compat import PublishedCheckpointError, load_published, read_options

NETS = ("encoder", "decoder", "frame_predictor", "posterior", "prior")
TOLERANCE = 1e-9
pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")  # torch, of the stand-ins


@pytest.fixture(autouse=True)
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with installed(monkeypatch, nf=2):
        yield


def write_old(tree: Any, path: Path) -> None:
    torch.save(tree, path, _use_new_zipfile_serialization=False)


WRITERS: dict[str, Callable[[Any, Path], None]] = {"zip": torch.save, "old": write_old, "2018": write_2018}


def state_of(tree: dict[str, Any]) -> dict[str, torch.Tensor]:
    nets = ((net, tree[net]) for net in NETS if net in tree)
    return {f"{net}.{name}": tensor for net, module in nets for name, tensor in module.state_dict().items()}


def check_rollout(model: SVG, tree: dict[str, Any], statistics: Any) -> None:
    """Frames of the model, of the file's own networks, and of the oracle, with the same noise: float64."""
    config = model.config
    size = (config.channels, config.image_size, config.image_size)
    n_past, n_future = config.n_past, 3
    frames = torch.rand(2, n_past, *size, dtype=torch.float64)
    eps = torch.randn(n_past + n_future - 1, 1, 2, config.z_dim, dtype=torch.float64)
    oracle = OracleSVG(config).double()
    oracle.load_state_dict(state_of(tree))
    oracle.train(statistics == "batch")
    with torch.no_grad():
        video = model.sample(frames, n_future, statistics=statistics, eps=None if config.variant == "det" else eps)
        wanted = oracle.generate(frames, n_future, eps[:, 0])
        h, skips = tree["encoder"].eval()(frames[:, 0])
        own_h, own_skips = model.encoder(frames[:, 0])
        assert relative(own_h, h) < TOLERANCE
        assert relative(model.decoder((own_h, own_skips)), tree["decoder"].eval()([h, skips])) < TOLERANCE
    assert relative(video[0], wanted) < TOLERANCE


@pytest.mark.parametrize("backbone", ["dcgan", "vgg"])
@pytest.mark.parametrize(("variant", "statistics"), [("lp", "batch"), ("fp", "running"), ("det", "running")])
@pytest.mark.parametrize("writer", WRITERS)
def test_frames_are_those_of_the_files_own_networks(
    tmp_path: Path, writer: str, variant: Any, statistics: Any, backbone: str
) -> None:
    tree = checkpoint(variant, model=backbone)
    WRITERS[writer](tree, tmp_path / "model.pth")
    model = load_published(tmp_path / "model.pth")
    config = model.config
    assert (config.variant, config.backbone, config.skip) == (variant, backbone, "published")
    assert config.sampling_statistics() == statistics
    assert (config.n_past, config.n_future, config.beta, config.last_frame_skip) == (3, 4, 0.001, False)
    assert (config.g_dim, config.z_dim, config.rnn_size, config.predictor_rnn_layers) == (6, 3, 5, 2)
    assert not model.training
    state = model.state_dict()
    for name, tensor in state_of(tree).items():
        assert torch.equal(state[name], tensor), name
        assert state[name].device.type == "cpu"
    check_rollout(model, tree, statistics)


@pytest.mark.parametrize("backbone", ["dcgan", "vgg"])
def test_larger_and_deeper_networks(tmp_path: Path, backbone: str) -> None:
    layers: dict[str, Any] = {"predictor_rnn_layers": 3, "posterior_rnn_layers": 2, "prior_rnn_layers": 2}
    tree = checkpoint("lp", model=backbone, image_width=128, channels=3, last_frame_skip=True, **layers)
    write_2018(tree, tmp_path / "model.pth")
    model = load_published(tmp_path / "model.pth")
    assert (model.config.image_size, model.config.channels, model.config.last_frame_skip) == (128, 3, True)
    check_rollout(model, tree, "batch")


@pytest.mark.parametrize(("backbone", "channels", "total"), [("dcgan", 1, 12_614_057), ("vgg", 3, None)])
def test_the_published_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str, channels: int, total: int | None
) -> None:
    for name, module in modules(64).items():
        monkeypatch.setitem(sys.modules, name, module)
    paper: dict[str, Any] = {"g_dim": 128, "z_dim": 10, "rnn_size": 256} if total else {}
    tree = checkpoint("lp", dtype=torch.float32, model=backbone, channels=channels, **paper)
    write_old(tree, tmp_path / "model.pth")
    model = load_published(tmp_path / "model.pth")
    assert model.config.nf == 64
    assert next(model.parameters()).dtype == torch.float32
    if total:
        assert sum(parameter.numel() for parameter in model.parameters()) == total
    with torch.no_grad():
        frames = torch.rand(2, channels, 64, 64)
        own, wanted = model.encoder(frames), tree["encoder"](frames)
        assert relative(own[0], wanted[0]) < 1e-4
        assert relative(model.decoder(own), tree["decoder"](wanted)) < 1e-4


def test_counters_of_torch_0_3_start_at_zero(tmp_path: Path) -> None:
    tree = checkpoint()
    for module in tree["encoder"].modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_batches_tracked is not None
            module.num_batches_tracked.fill_(7)
    write_2018(tree, tmp_path / "model.pth")
    counters = {name: x for name, x in load_published(tmp_path / "model.pth").named_buffers() if "tracked" in name}
    assert len(counters) == 9
    assert not any(counters.values())
    write_old(tree, tmp_path / "model.pth")
    assert int(dict(load_published(tmp_path / "model.pth").named_buffers())["encoder.c5.1.num_batches_tracked"]) == 7


def test_loading_draws_no_random_number(tmp_path: Path) -> None:
    torch.save(checkpoint(), tmp_path / "model.pth")
    before = torch.get_rng_state()
    load_published(tmp_path / "model.pth")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("writer", WRITERS)
def test_options(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "model.pth"
    WRITERS[writer](checkpoint(nested=[{"a": 1}], sizes=[1, 2], long=[1] * 101), path)
    options = read_options(path)
    wanted = {"dataset": "smmnist", "num_digits": 2, "lr": 0.002, "optimizer": "adam", "sizes": [1, 2], "n_past": 3}
    assert wanted.items() <= options.items()
    assert not {"nested", "long"} & options.keys()
    WRITERS[writer](checkpoint(optimizer="rmsprop"), path)
    assert read_options(path)["optimizer"] == "rmsprop"


def test_settings_that_older_options_lack_are_the_scripts_defaults(tmp_path: Path) -> None:
    tree = checkpoint()
    for name in ("n_past", "n_future", "beta", "last_frame_skip", "predictor_rnn_layers"):
        delattr(tree["opt"], name)
    torch.save(tree, tmp_path / "model.pth")
    config = load_published(tmp_path / "model.pth").config
    assert (config.n_past, config.n_future, config.beta, config.last_frame_skip) == (5, 10, 1e-4, False)


@pytest.mark.parametrize(
    ("variant", "change", "message"),
    [
        ("lp", {"z_dim": 4}, "its options say z_dim = 4, its networks 3"),
        ("lp", {"model": "vgg"}, "its options say model = 'vgg', its networks 'dcgan'"),
        ("lp", {"image_width": 128}, "its options say image_width = 128, its networks 64"),
        ("fp", {"predictor_rnn_layers": 1}, "its options say predictor_rnn_layers = 1, its networks 2"),
        ("lp", {"n_past": "five"}, "has the option n_past = 'five', which must be int"),
        ("lp", {"n_past": 1}, "has settings that no model can have: n_past = 1 leaves the published skip"),
        ("det", {"beta": float("nan")}, "has settings that no model can have: beta must not be negative, got nan"),
    ],
)
def test_options_that_contradict(tmp_path: Path, variant: str, change: dict[str, Any], message: str) -> None:
    tree = checkpoint(variant)
    vars(tree["opt"]).update(change)
    torch.save(tree, tmp_path / "model.pth")
    with pytest.raises(PublishedCheckpointError, match=message):
        load_published(tmp_path / "model.pth")


def _swap(tree: dict[str, Any], **nets: Any) -> dict[str, Any]:
    return {name: net for name, net in {**tree, **nets}.items() if net is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: _swap(tree, encoder=tree["decoder"]), "has a models.dcgan_64.decoder for its encoder"),
        (lambda tree: _swap(tree, decoder=checkpoint(model="vgg")["decoder"]), "vgg_64.decoder for its decoder"),
        (lambda tree: _swap(tree, prior=tree["frame_predictor"]), "lstm.lstm for its prior, wanted models.lstm.gauss"),
        (lambda tree: _swap(tree, posterior=None), "has a prior but no posterior"),
        (lambda tree: _swap(tree, decoder=None), "not a published checkpoint: decoder must be a whole module"),
        (lambda tree: _swap(tree, opt=None), "not a published checkpoint: opt must be"),
        (lambda tree: _swap(tree, encoder=tree["encoder"].state_dict()), "encoder must be a whole module"),
        (
            lambda tree: _swap(tree, decoder=checkpoint(g_dim=7)["decoder"]),
            r"decoder.upc1.0.weight must have shape \[6, 16, 4, 4\], got \[7, 16, 4, 4\]",
        ),
        (
            lambda tree: _swap(tree, frame_predictor=checkpoint("det")["frame_predictor"]),
            r"frame_predictor.embed.weight must have shape \[5, 9\], got \[5, 6\]",
        ),
        (lambda tree: tree["encoder"].c3.main.__delitem__(1) or tree, "encoder.c3.main.1.weight is missing"),
        (
            lambda tree: tree["encoder"].add_module("c7", nn.Linear(2, 2)) or tree,
            "'encoder.c7.bias' is not a tensor of",
        ),
        (lambda tree: [tree], "it must hold a dictionary"),
        (lambda tree: tree["prior"], "it must hold a dictionary"),
    ],
)
def test_not_what_the_scripts_saved(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    torch.save(change(checkpoint()), tmp_path / "model.pth")
    with pytest.raises(PublishedCheckpointError, match=message):
        load_published(tmp_path / "model.pth")
