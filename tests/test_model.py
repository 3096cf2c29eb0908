"""The model's public face: names and counts as published, initialisation, presets, wrong use, torch.compile, memory."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
from test_parity import SMALL
from torch import Tensor, nn

import svg_fast
from svg_fast import SVG, SVGConfig
from svg_fast.models import PRESETS, dcgan, vgg


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("backbone", "size", "channels", "encoder", "decoder"),
    [
        (dcgan, 64, 1, 3_805_376, 6_558_529),
        (dcgan, 128, 1, 8_001_216, 14_948_673),
        (vgg, 64, 3, 8_689_600, 11_822_659),
        (vgg, 128, 3, 15_772_096, 21_264_451),
    ],
)
def test_parameter_counts_of_encoders_and_decoders(
    backbone: Any, size: int, channels: int, encoder: int, decoder: int
) -> None:
    assert count(backbone.Encoder(channels, 128, image_size=size)) == encoder
    assert count(backbone.Decoder(channels, 128, image_size=size)) == decoder


def test_parameter_counts_of_the_model() -> None:
    model = SVG(svg_fast.preset("smmnist-lp"))
    assert count(model.frame_predictor) == 1_121_152
    assert count(model.posterior) == count(model.prior) == 564_500
    assert count(model) == 12_614_057
    assert count(SVG(svg_fast.preset("smmnist-fp"))) == 12_049_557
    baseline = SVG(svg_fast.preset("smmnist-det"))
    assert not hasattr(baseline, "posterior")
    assert not hasattr(baseline, "prior")


def test_state_dict_names_are_the_published_ones() -> None:
    names = SVG(SMALL).state_dict().keys()
    for name in (
        "encoder.c1.main.0.weight",
        "encoder.c4.main.1.running_var",
        "encoder.c5.0.bias",
        "encoder.c5.1.num_batches_tracked",
        "decoder.upc1.1.weight",
        "decoder.upc4.main.0.bias",
        "decoder.upc5.0.weight",
        "frame_predictor.embed.weight",
        "frame_predictor.lstm.1.bias_hh",
        "frame_predictor.output.0.bias",
        "posterior.mu_net.weight",
        "prior.logvar_net.bias",
    ):
        assert name in names
    names = SVG(replace(SMALL, backbone="vgg")).state_dict().keys()
    for name in ("encoder.c3.2.main.0.weight", "decoder.upc2.2.main.1.bias", "decoder.upc5.1.weight"):
        assert name in names


def test_initialisation_is_the_published_one() -> None:
    torch.manual_seed(0)
    model = SVG(svg_fast.preset("smmnist-lp"))
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            bound = 5 / module.weight.numel() ** 0.5  # five standard errors
            assert abs(module.weight.mean()) < 0.02 * bound, name
            assert abs(module.weight.std() / 0.02 - 1) < bound, name
            assert module.bias is None or not module.bias.any(), name
        if isinstance(module, nn.BatchNorm2d):
            assert abs(module.weight.mean() - 1) < 0.02 * 5 / module.num_features**0.5, name
            assert not module.bias.any(), name
        if isinstance(module, nn.LSTMCell):
            bound = module.hidden_size**-0.5
            assert all(p.abs().max() <= bound and p.std() > bound / 2 for p in module.parameters()), name


def test_presets() -> None:
    families = ("smmnist", "kth", "bair", "smmnist-1digit")
    others = {"smmnist-small", "smmnist-1digit-lp-nonuniform"}
    assert set(PRESETS) == {f"{d}-{v}" for d in families for v in ("lp", "fp", "det")} | others
    lp = svg_fast.preset("smmnist-lp")
    assert (lp.g_dim, lp.z_dim, lp.rnn_size, lp.n_past, lp.n_future, lp.beta) == (128, 10, 256, 5, 10, 1e-4)
    kth, bair = svg_fast.preset("kth-fp"), svg_fast.preset("bair-lp")
    assert (kth.variant, kth.backbone, kth.z_dim, kth.n_past, kth.beta) == ("fp", "vgg", 24, 10, 1e-6)
    assert (bair.channels, bair.z_dim, bair.n_past, bair.n_future) == (3, 64, 2, 10)
    with pytest.raises(ValueError, match="unknown preset 'smnist-lp'; did you mean 'smmnist-lp'"):
        svg_fast.preset("smnist-lp")
    with pytest.raises(ValueError, match="unknown preset 'xyz'; the presets are smmnist-lp, "):
        svg_fast.preset("xyz")
    with pytest.raises(FrozenInstanceError):
        lp.beta = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "vae"}, "variant must be one of lp, fp, det, got 'vae'"),
        ({"backbone": "resnet"}, "backbone must be one of dcgan, vgg, got 'resnet'"),
        ({"image_size": 96}, "image_size must be one of 64, 128, got 96"),
        ({"nf": 0}, "nf must be at least 1, got 0"),
        ({"time_chunk": 0}, "time_chunk must be at least 1, got 0"),
        ({"beta": -1.0}, "beta must not be negative, got -1.0"),
        ({"n_past": 1}, "n_past = 1 leaves the published skip without a frame"),
    ],
)
def test_wrong_configurations(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


CLIP = torch.full((2, 4, 1, 64, 64), 0.5)


@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        (CLIP[0], ValueError, r"5 dimensions \(B, T, C, H, W\), got shape \[4, 1, 64, 64\]"),
        (CLIP[..., :32], ValueError, r"\(B, T, 1, 64, 64\), got shape \[2, 4, 1, 64, 32\]"),
        (CLIP.expand(2, 4, 3, 64, 64), ValueError, r"\(B, T, 1, 64, 64\), got shape \[2, 4, 3, 64, 64\]"),
        (CLIP * 255, ValueError, r"lie in \[0, 1\] \(or be uint8\), got values from 127.5 to 127.5"),
        (CLIP - 1, ValueError, "got values from -0.5 to -0.5"),
        (CLIP * torch.nan, ValueError, "got values from nan to nan"),
        (CLIP.int(), TypeError, "uint8, or floating point in .0, 1., got torch.int32"),
        (CLIP[:, :2], ValueError, "longer than its n_past = 2 conditioning frames, got 2 frames"),
        (CLIP[:0], ValueError, r"at least one clip, got shape \[0, 4, 1, 64, 64\]"),
        (CLIP[:1], ValueError, "more than one value per channel.*a batch of two or more, or running statistics"),
    ],
)
def test_wrong_frames(frames: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SVG(SMALL)(frames)


def test_wrong_noise() -> None:
    with pytest.raises(ValueError, match=r"eps must have shape \[3, 2, 3\] \(T - 1, B, z_dim\), got \[2, 2, 3\]"):
        SVG(SMALL)(CLIP, torch.zeros(2, 2, 3))
    with pytest.raises(ValueError, match="deterministic model has no latent: eps must be None"):
        SVG(replace(SMALL, variant="det"))(CLIP, torch.zeros(3, 2, 3))


def test_uint8_frames_and_seeded_noise() -> None:
    torch.manual_seed(0)
    model = SVG(SMALL)
    frames = (torch.rand(2, 4, 1, 64, 64) * 255).to(torch.uint8)

    def loss(given: Tensor, seed: int) -> Tensor:
        loss: Tensor = model(given, generator=torch.Generator().manual_seed(seed)).loss
        return loss

    assert torch.equal(loss(frames, 0), loss(frames.float() / 255, 0))
    assert not torch.equal(loss(frames, 0), loss(frames, 1))


def test_output_shapes_and_the_loss_they_make() -> None:
    torch.manual_seed(0)
    out = SVG(SMALL)(torch.rand(2, 5, 1, 64, 64))
    assert out.prediction.shape == (2, 4, 1, 64, 64)
    assert out.mse_per_step.shape == out.kl_per_step.shape == (4,)
    torch.testing.assert_close(out.loss, out.mse_per_step.sum() + SMALL.beta * out.kl_per_step.sum())
    assert out.kl > 0


def test_encoder_and_decoder_are_modules_of_their_own() -> None:
    """As published: encoder(x) -> h, skips; decoder((h, skips)) -> frames; running statistics advance by one call."""
    torch.manual_seed(0)
    model = SVG(SMALL)
    h, skips = model.encoder(torch.rand(3, 1, 64, 64))
    assert h.shape == (3, SMALL.g_dim)
    assert [skip.shape[1:] for skip in skips] == [(2, 32, 32), (4, 16, 16), (8, 8, 8), (16, 4, 4)]
    assert model.decoder((h, skips)).shape == (3, 1, 64, 64)
    tracked = [buffer for name, buffer in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert all(buffer == 1 for buffer in tracked)


def test_compiles_without_a_graph_break() -> None:
    torch.manual_seed(0)
    model = SVG(replace(SMALL, time_chunk=4)).double()
    frames, eps = torch.rand(2, 4, 1, 64, 64).double(), torch.randn(3, 2, 3).double()
    want = model(frames, eps)
    want.loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    out = torch.compile(model, fullgraph=True, backend="aot_eager")(frames, eps)
    out.loss.backward()
    torch.testing.assert_close(out.loss, want.loss)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def kept_for_backward(config: SVGConfig) -> int:
    """Bytes of the storages that the forward pass keeps for the backward."""
    torch.manual_seed(0)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model = SVG(config)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(torch.rand(4, 8, 1, 64, 64))
    assert out.loss.requires_grad
    return sum(size for pointer, size in kept.items() if pointer not in parameters)


def test_recomputation_keeps_a_fraction_of_the_activations() -> None:
    config = replace(SMALL, backbone="vgg", nf=8, time_chunk=1)
    assert kept_for_backward(replace(config, recompute=True)) < kept_for_backward(config) / 3
