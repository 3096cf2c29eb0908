"""The published modules under their published names, on the library's ops: an old training script changes its imports.

    import svg_fast.compat.models as lstm_models          # for import models.lstm as lstm_models
    from svg_fast.compat.models import dcgan_64 as model  # for import models.dcgan_64 as model

They are the published classes in their state_dict names, in one frame or step a call, in BatchNorm by the statistics of
that call, and in the noise that torch's generator gives. `svg_fast.SVG` is the fast way through a whole clip. B batch.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from .. import ops
from ..models import dcgan, vgg
from ..models.frame_network import ConvNorm
from ..models.recurrent import RecurrentNet

# ruff: noqa: N801 (the published names)

_NF = 64


class dcgan_conv(ConvNorm):
    """Convolution, BatchNorm and LeakyReLU of a dcgan encoder."""


class dcgan_upconv(ConvNorm):
    """Transposed convolution, BatchNorm and LeakyReLU of a dcgan decoder."""


class vgg_layer(ConvNorm):
    """Convolution, BatchNorm and LeakyReLU of a vgg encoder or decoder."""


class _FrameNetwork(nn.Module):
    """The published constructor: features of `dim` numbers, frames of `nc` channels."""

    image_size: ClassVar[int]  # pixels
    layer: ClassVar[type[ConvNorm]]

    def __init__(self, dim: int, nc: int = 1) -> None:
        super().__init__(nc, dim, _NF, self.image_size)
        self.dim = dim
        for module in self.modules():
            if type(module) is ConvNorm:  # old scripts initialise whatever has "Conv" in its class's name
                module.__class__ = self.layer


class dcgan_64_encoder(_FrameNetwork, dcgan.Encoder):
    """Frames (B, nc, 64, 64) -> features (B, dim), [skips, shallow to deep]."""

    image_size, layer = 64, dcgan_conv


class dcgan_64_decoder(_FrameNetwork, dcgan.Decoder):
    """[features (B, dim), skips] -> frames (B, nc, 64, 64)."""

    image_size, layer = 64, dcgan_upconv


class dcgan_128_encoder(_FrameNetwork, dcgan.Encoder):
    """Frames (B, nc, 128, 128) -> features (B, dim), [skips, shallow to deep]."""

    image_size, layer = 128, dcgan_conv


class dcgan_128_decoder(_FrameNetwork, dcgan.Decoder):
    """[features (B, dim), skips] -> frames (B, nc, 128, 128)."""

    image_size, layer = 128, dcgan_upconv


class vgg_64_encoder(_FrameNetwork, vgg.Encoder):
    """Frames (B, nc, 64, 64) -> features (B, dim), [skips, shallow to deep]."""

    image_size, layer = 64, vgg_layer


class vgg_64_decoder(_FrameNetwork, vgg.Decoder):
    """[features (B, dim), skips] -> frames (B, nc, 64, 64)."""

    image_size, layer = 64, vgg_layer


class vgg_128_encoder(_FrameNetwork, vgg.Encoder):
    """Frames (B, nc, 128, 128) -> features (B, dim), [skips, shallow to deep]."""

    image_size, layer = 128, vgg_layer


class vgg_128_decoder(_FrameNetwork, vgg.Decoder):
    """[features (B, dim), skips] -> frames (B, nc, 128, 128)."""

    image_size, layer = 128, vgg_layer


# The published modules; their classes have names of their own above, under which they can be pickled.
dcgan_64 = SimpleNamespace(encoder=dcgan_64_encoder, decoder=dcgan_64_decoder)
dcgan_128 = SimpleNamespace(encoder=dcgan_128_encoder, decoder=dcgan_128_decoder)
vgg_64 = SimpleNamespace(encoder=vgg_64_encoder, decoder=vgg_64_decoder)
vgg_128 = SimpleNamespace(encoder=vgg_128_encoder, decoder=vgg_128_decoder)
encoder, decoder = dcgan_64_encoder, dcgan_64_decoder


class _Recurrent(RecurrentNet):
    """A recurrent net that keeps its state, `hidden`: for each layer h, c (batch_size, hidden_size)."""

    def __init__(self, input_size: int, output_size: int, hidden_size: int, n_layers: int, batch_size: int) -> None:
        super().__init__(input_size, hidden_size, n_layers)
        self.input_size, self.output_size = input_size, output_size
        self.n_layers, self.batch_size = n_layers, batch_size
        self.hidden = self.init_hidden()

    def init_hidden(self) -> list[tuple[Tensor, Tensor]]:
        """A state of zeros on the module's device; a sequence begins with `net.hidden = net.init_hidden()`."""
        shape = (self.batch_size, self.hidden_size)
        return [(self.embed.weight.new_zeros(shape), self.embed.weight.new_zeros(shape)) for _ in range(self.n_layers)]

    def advance(self, x: Tensor) -> list[Tensor]:
        """One step: x (B, input_size) -> what the heads say; the state moves on."""
        h, c = (torch.stack(parts) for parts in zip(*self.hidden, strict=True))
        outputs, (h, c) = self.run_step(x.reshape(-1, self.input_size), (h, c))
        self.hidden = list(zip(h.unbind(), c.unbind(), strict=True))
        return outputs


class lstm(_Recurrent):
    """The frame predictor, one step a call: x (B, input_size) -> (B, output_size) in (-1, 1)."""

    def __init__(self, input_size: int, output_size: int, hidden_size: int, n_layers: int, batch_size: int) -> None:
        super().__init__(input_size, output_size, hidden_size, n_layers, batch_size)
        self.output = nn.Sequential(nn.Linear(hidden_size, output_size), nn.Tanh())

    def heads(self) -> list[nn.Linear]:
        return [cast(nn.Linear, self.output[0])]

    def forward(self, x: Tensor) -> Tensor:
        (y,) = self.advance(x)
        return y


class gaussian_lstm(_Recurrent):
    """Posterior or prior, one step a call: x (B, input_size) -> a sample z, mu, logvar (B, output_size)."""

    def __init__(self, input_size: int, output_size: int, hidden_size: int, n_layers: int, batch_size: int) -> None:
        super().__init__(input_size, output_size, hidden_size, n_layers, batch_size)
        self.mu_net = nn.Linear(hidden_size, output_size)
        self.logvar_net = nn.Linear(hidden_size, output_size)

    def heads(self) -> list[nn.Linear]:
        return [self.mu_net, self.logvar_net]

    def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
        """z = mu + eps * exp(logvar / 2), eps from torch's generator of that device."""
        return ops.gaussian_rsample(mu, logvar, eps=torch.randn_like(mu))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.advance(x)
        return self.reparameterize(mu, logvar), mu, logvar
