"""An old training script runs with `svg_fast.compat.models` by a change of its imports alone, and computes the same."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from oracle import OracleSVG
from published_standins import installed, options
from test_parity import SMALL, free_biases, relative
from torch import Tensor

from svg_fast.compat import load_published, models, read_options

T, BATCH, NF, TOLERANCE = 5, 2, 2, 1e-9

# `opt` and `x` are given: a list of T frames (B, C, H, W).
SCRIPT = """
import torch
import models.lstm as lstm_models
import models.{backbone} as model

torch.manual_seed(opt.seed)

def init_weights(m):
    name = m.__class__.__name__
    if "Conv" in name or "Linear" in name:
        m.weight.data.normal_(0.0, 0.02)
        m.bias.data.fill_(0)
    elif "BatchNorm" in name:
        m.weight.data.normal_(1.0, 0.02)
        m.bias.data.fill_(0)

nets = dict(
    frame_predictor=lstm_models.lstm(
        opt.g_dim + opt.z_dim, opt.g_dim, opt.rnn_size, opt.predictor_rnn_layers, opt.batch_size
    ),
    posterior=lstm_models.gaussian_lstm(
        opt.g_dim, opt.z_dim, opt.rnn_size, opt.posterior_rnn_layers, opt.batch_size
    ),
    prior=lstm_models.gaussian_lstm(opt.g_dim, opt.z_dim, opt.rnn_size, opt.prior_rnn_layers, opt.batch_size),
    encoder=model.encoder(opt.g_dim, opt.channels),
    decoder=model.decoder(opt.g_dim, opt.channels),
)
frame_predictor, posterior, prior, encoder, decoder = nets.values()
for net in nets.values():
    net.apply(init_weights)
    net.double()
optimizers = [torch.optim.Adam(net.parameters(), lr=opt.lr, betas=(0.9, 0.999)) for net in nets.values()]
mse_criterion = torch.nn.MSELoss()

def kl_criterion(mu1, logvar1, mu2, logvar2):
    kl = (logvar2 - logvar1) / 2 + (logvar1.exp() + (mu1 - mu2) ** 2) / (2 * logvar2.exp()) - 0.5
    return kl.sum() / opt.batch_size

def train(x):
    for net in nets.values():
        net.zero_grad()
    for net in (frame_predictor, posterior, prior):
        net.hidden = net.init_hidden()
    mse, kld = 0, 0
    for i in range(1, len(x)):
        h, now = encoder(x[i - 1])
        h_target = encoder(x[i])[0]
        if opt.last_frame_skip or i < opt.n_past:
            skip = now
        z, mu, logvar = posterior(h_target)
        _, mu_p, logvar_p = prior(h)
        x_pred = decoder([frame_predictor(torch.cat([h, z], 1)), skip])
        mse = mse + mse_criterion(x_pred, x[i])
        kld = kld + kl_criterion(mu, logvar, mu_p, logvar_p)
    loss = mse + opt.beta * kld
    loss.backward()
    return loss.item(), mse.item(), kld.item()

tensors = lambda: {{f"{{name}}.{{key}}": t for name, net in nets.items() for key, t in net.state_dict().items()}}
start = {{name: t.clone() for name, t in tensors().items()}}
torch.manual_seed(opt.seed + 1)
first = train(x)
after = {{name: t.clone() for name, t in tensors().items()}}
gradients = {{
    f"{{name}}.{{key}}": p.grad.clone() for name, net in nets.items() for key, p in net.named_parameters()
}}
for optimizer in optimizers:
    optimizer.step()
second = train(x)
"""


def changed(script: str, backbone: str) -> str:
    """The script with nothing but its import lines changed."""
    new = script.replace("import models.lstm as lstm_models", "import svg_fast.compat.models as lstm_models")
    return new.replace(f"import models.{backbone} as model", f"from svg_fast.compat.models import {backbone} as model")


def run(script: str, opt: Any, x: list[Tensor]) -> dict[str, Any]:
    names: dict[str, Any] = {"opt": opt, "x": x}
    exec(compile(script, "script", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both kinds of modules with a base width of 2."""
    monkeypatch.setattr(models, "_NF", NF)
    with installed(monkeypatch, NF):
        yield


@pytest.mark.parametrize("last_frame_skip", [False, True], ids=["", "last_frame_skip"])
@pytest.mark.parametrize("backbone", ["dcgan_64", "dcgan_128", "vgg_64", "vgg_128"])
def test_an_old_script_by_its_imports_alone(backbone: str, last_frame_skip: bool) -> None:
    kind, size = cast(Any, backbone.split("_")[0]), int(backbone.split("_")[1])
    opt = options(seed=3, last_frame_skip=last_frame_skip, posterior_rnn_layers=2)
    x = list(torch.rand(T, BATCH, 1, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    script = SCRIPT.format(backbone=backbone)
    old, new = (run(source, opt, x) for source in (script, changed(script, backbone)))
    assert type(new["encoder"]).__module__ == "svg_fast.compat.models"
    assert old["start"].keys() == new["start"].keys()
    assert all(torch.equal(new["start"][name], tensor) for name, tensor in old["start"].items())

    config = replace(
        SMALL,
        backbone=kind,
        image_size=size,
        posterior_rnn_layers=2,
        n_past=opt.n_past,
        beta=opt.beta,
        last_frame_skip=last_frame_skip,
    )
    oracle = OracleSVG(config).double()
    oracle.load_state_dict(old["start"])
    torch.manual_seed(opt.seed + 1)
    draws = [torch.randn(2, BATCH, config.z_dim, dtype=torch.float64).unbind() for _ in range(T - 1)]
    want = oracle(torch.stack(x, 1), torch.stack([posterior for posterior, _ in draws]))
    want.loss.backward()
    free, wanted = free_biases(oracle), dict(oracle.named_parameters())
    for script_run in (old, new):
        loss, mse, kl = torch.tensor(script_run["first"], dtype=torch.float64)
        assert relative(loss, want.loss) < TOLERANCE
        assert relative(mse, want.mse_per_step.sum()) < TOLERANCE
        assert relative(kl, want.kl_per_step.sum()) < TOLERANCE
        assert script_run["gradients"].keys() == wanted.keys()
        for name, gradient in script_run["gradients"].items():
            want_grad = wanted[name].grad
            assert want_grad is not None
            if name not in free:
                assert relative(gradient, want_grad) < TOLERANCE, name
        for name, buffer in oracle.named_buffers():
            assert relative(script_run["after"][name].double(), buffer.double()) < TOLERANCE, name
    second = [torch.tensor(script_run["second"], dtype=torch.float64) for script_run in (new, old)]
    assert relative(*second) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "nc", "counts"),
    [
        ("dcgan_64", 1, (3_805_376, 6_558_529)),
        ("dcgan_128", 1, (8_001_216, 14_948_673)),
        ("vgg_64", 3, (8_689_600, 11_822_659)),
        ("vgg_128", 3, (15_772_096, 21_264_451)),
    ],
)
def test_networks_are_of_the_published_size(
    monkeypatch: pytest.MonkeyPatch, name: str, nc: int, counts: tuple[int, int]
) -> None:
    monkeypatch.undo()
    backbone = getattr(models, name)
    with torch.device("meta"):
        nets = backbone.encoder(128, nc), backbone.decoder(128, nc)
    assert tuple(sum(parameter.numel() for parameter in net.parameters()) for net in nets) == counts


def test_names_at_the_top_are_those_of_dcgan_64() -> None:
    assert (models.encoder, models.decoder) == (models.dcgan_64.encoder, models.dcgan_64.decoder)
    with torch.device("meta"):
        predictor, prior = models.lstm(138, 128, 256, 2, 100), models.gaussian_lstm(128, 10, 256, 1, 100)
    assert sum(parameter.numel() for parameter in predictor.parameters()) == 1_121_152
    assert sum(parameter.numel() for parameter in prior.parameters()) == 564_500
    assert (prior.input_size, prior.output_size, prior.hidden_size) == (128, 10, 256)
    assert (prior.n_layers, prior.batch_size) == (1, 100)


@pytest.mark.parametrize("gradients", [False, True])
def test_generation_step_by_step(gradients: bool) -> None:
    """Eval mode, with and without gradients: outputs, and states as lists of pairs, are those of the stand-ins."""
    published = sys.modules["models.lstm"]
    x = torch.rand(4, 3, 6, dtype=torch.float64)
    with torch.set_grad_enabled(gradients):
        for name, sizes in (("lstm", (6, 4, 5, 2, 1)), ("gaussian_lstm", (6, 3, 5, 2, 1))):
            nets = [getattr(module, name)(*sizes).double().eval() for module in (published, models)]
            nets[1].load_state_dict(nets[0].state_dict())
            outputs = []
            for net in nets:
                torch.manual_seed(5)
                net.batch_size = 3
                net.hidden = net.init_hidden()
                assert [tuple(h.shape) for h, _ in net.hidden] == [(3, 5)] * 2
                assert all(part.dtype == torch.float64 and not part.any() for pair in net.hidden for part in pair)
                steps = [net(frame) for frame in x]
                outputs.append([*steps, *net.hidden] if name == "lstm" else [*sum(steps, ()), *net.hidden])
            for want, got in zip(*outputs, strict=True):
                assert type(got) is type(want)
                for a, b in zip(got, want, strict=True):
                    assert relative(a, b) < TOLERANCE


def test_a_sample_has_gradients() -> None:
    net = models.gaussian_lstm(6, 3, 5, 1, 2)
    z, mu, logvar = net(torch.rand(2, 6))
    (dmu, dlogvar) = torch.autograd.grad(z.sum(), (mu, logvar))
    assert torch.equal(dmu, torch.ones_like(mu))
    assert torch.allclose(dlogvar, (z - mu).detach() / 2)


def test_what_such_a_script_saves_is_a_published_checkpoint(tmp_path: Path) -> None:
    """Whole modules of these classes: for the script's own torch.load, and for `load_published`."""
    opt = options(seed=3)
    x = list(torch.rand(4, BATCH, 1, 64, 64, dtype=torch.float64))
    nets = run(changed(SCRIPT.format(backbone="dcgan_64"), "dcgan_64"), opt, x)["nets"]
    torch.save({**nets, "opt": opt}, tmp_path / "model.pth")
    again = torch.load(tmp_path / "model.pth", weights_only=False)
    assert type(again["encoder"]) is models.dcgan_64.encoder
    assert type(again["encoder"].c1).__name__ == "dcgan_conv"
    state = load_published(tmp_path / "model.pth").state_dict()
    assert read_options(tmp_path / "model.pth")["seed"] == 3
    for name, net in nets.items():
        for key, tensor in net.state_dict().items():
            assert torch.equal(again[name].state_dict()[key], tensor)
            assert torch.equal(state[f"{name}.{key}"], tensor)
