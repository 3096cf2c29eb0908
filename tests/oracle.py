"""The published training and generation loops, written plainly over stock torch.nn, one time step after another.

The judge of exactness and the baseline of every speed figure. It shares no code with the library: networks, names and
the order of calls come from the published description (Denton & Fergus 2018, sections 3 and 4 and appendix A).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DcganLayer(nn.Module):
    def __init__(self, conv: nn.Module, n_out: int) -> None:
        super().__init__()
        self.main = nn.Sequential(conv, nn.BatchNorm2d(n_out), nn.LeakyReLU(0.2, inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)


def down(n_in: int, n_out: int) -> DcganLayer:
    return DcganLayer(nn.Conv2d(n_in, n_out, 4, 2, 1), n_out)


def up(n_in: int, n_out: int) -> DcganLayer:
    return DcganLayer(nn.ConvTranspose2d(n_in, n_out, 4, 2, 1), n_out)


def vgg(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(DcganLayer(nn.Conv2d(a, b, 3, 1, 1), b) for a, b in pairwise(widths)))


def head(n_in: int, g_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(n_in, g_dim, 4, 1, 0), nn.BatchNorm2d(g_dim), nn.Tanh())


def tail(g_dim: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(g_dim, n_out, 4, 1, 0), nn.BatchNorm2d(n_out), nn.LeakyReLU(0.2, inplace=True)
    )


class Encoder(nn.Module):
    """c1 .. c4 (or c5 at 128 pixels), each a skip, then the head."""

    def __init__(self, backbone: str, size: int, nc: int, g_dim: int, nf: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2) if backbone == "vgg" else nn.Identity()
        if backbone == "dcgan":
            widths = [nc, nf, nf * 2, nf * 4, nf * 8] + [nf * 8] * (size == 128)
            stages: list[nn.Module] = [down(a, b) for a, b in pairwise(widths)]
        else:
            stages = [
                vgg(nc, nf, nf),
                vgg(nf, nf * 2, nf * 2),
                vgg(nf * 2, *[nf * 4] * 3),
                vgg(nf * 4, *[nf * 8] * 3),
            ]
            stages += [vgg(*[nf * 8] * 4)] * (size == 128)
        self.n = len(stages)
        for k, stage in enumerate([*stages, head(nf * 8, g_dim)], start=1):
            self.add_module(f"c{k}", stage)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for k in range(1, self.n + 1):
            x = getattr(self, f"c{k}")(x if k == 1 else self.pool(x))
            skips.append(x)
        return getattr(self, f"c{self.n + 1}")(self.pool(x)).flatten(1), skips


class Decoder(nn.Module):
    """upc1, then levels over cat([upstream, skip]), deepest skip first."""

    def __init__(self, backbone: str, size: int, nc: int, g_dim: int, nf: int) -> None:
        super().__init__()
        big = size == 128
        self.grow = nn.UpsamplingNearest2d(scale_factor=2) if backbone == "vgg" else nn.Identity()
        if backbone == "dcgan":
            widths = [nf * 8] * big + [nf * 8, nf * 4, nf * 2, nf]
            levels: list[nn.Module] = [up(2 * a, b) for a, b in pairwise(widths)]
            levels.append(nn.Sequential(nn.ConvTranspose2d(2 * nf, nc, 4, 2, 1), nn.Sigmoid()))
        else:
            levels = [vgg(nf * 16, nf * 8, nf * 8, nf * 8)] * big
            levels += [
                vgg(nf * 16, nf * 8, nf * 8, nf * 4),
                vgg(nf * 8, nf * 4, nf * 4, nf * 2),
                vgg(nf * 4, nf * 2, nf),
            ]
            levels.append(nn.Sequential(*vgg(nf * 2, nf), nn.ConvTranspose2d(nf, nc, 3, 1, 1), nn.Sigmoid()))
        self.upc1 = tail(g_dim, nf * 8)
        self.n = len(levels)
        for k, level in enumerate(levels, start=2):
            self.add_module(f"upc{k}", level)

    def forward(self, h: Tensor, skips: list[Tensor]) -> Tensor:
        x = self.upc1(h[:, :, None, None])
        for k, skip in zip(range(2, self.n + 2), reversed(skips), strict=True):
            x = getattr(self, f"upc{k}")(torch.cat([self.grow(x), skip], 1))
        return x


class Recurrent(nn.Module):
    def __init__(self, n_in: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.embed = nn.Linear(n_in, hidden)
        self.lstm = nn.ModuleList([nn.LSTMCell(hidden, hidden) for _ in range(layers)])

    def init_hidden(self, batch: int) -> None:
        zeros = self.embed.weight.new_zeros(batch, self.hidden)
        self.state = [(zeros, zeros) for _ in self.lstm]

    def run(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for k, cell in enumerate(self.lstm):
            self.state[k] = cell(x, self.state[k])
            x = self.state[k][0]
        return x


class Predictor(Recurrent):
    def __init__(self, n_in: int, n_out: int, hidden: int, layers: int) -> None:
        super().__init__(n_in, hidden, layers)
        self.output = nn.Sequential(nn.Linear(hidden, n_out), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.run(x))


class Gaussian(Recurrent):
    def __init__(self, n_in: int, n_out: int, hidden: int, layers: int) -> None:
        super().__init__(n_in, hidden, layers)
        self.mu_net = nn.Linear(hidden, n_out)
        self.logvar_net = nn.Linear(hidden, n_out)

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.run(x)
        mu, logvar = self.mu_net(x), self.logvar_net(x)
        return mu + eps * (0.5 * logvar).exp(), mu, logvar


def divergence(mu: Tensor, logvar: Tensor, mu_p: Tensor, logvar_p: Tensor) -> Tensor:
    """KL of two diagonal Gaussians, summed over batch and latent."""
    q, p = (
        torch.distributions.Normal(mu, (0.5 * logvar).exp()),
        torch.distributions.Normal(mu_p, (0.5 * logvar_p).exp()),
    )
    return torch.distributions.kl_divergence(q, p).sum()


class Losses(NamedTuple):
    loss: Tensor
    mse_per_step: Tensor
    kl_per_step: Tensor
    prediction: Tensor


class OracleSVG(nn.Module):
    """Built from the attributes of a configuration; state_dict keys are the published names."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.c = c = config
        shape = (c.backbone, c.image_size, c.channels, c.g_dim, c.nf)
        self.encoder, self.decoder = Encoder(*shape), Decoder(*shape)
        stochastic = c.variant != "det"
        self.frame_predictor = Predictor(c.g_dim + c.z_dim * stochastic, c.g_dim, c.rnn_size, c.predictor_rnn_layers)
        if stochastic:
            self.posterior = Gaussian(c.g_dim, c.z_dim, c.rnn_size, c.posterior_rnn_layers)
        if c.variant == "lp":
            self.prior = Gaussian(c.g_dim, c.z_dim, c.rnn_size, c.prior_rnn_layers)

    def init_hidden(self, batch: int) -> None:
        for name in ("frame_predictor", "posterior", "prior"):
            if hasattr(self, name):
                getattr(self, name).init_hidden(batch)

    def latent(self, h: Tensor, h_target: Tensor, eps: Tensor, batch: int) -> tuple[list[Tensor], Tensor]:
        if self.c.variant == "det":
            return [], h.new_zeros(())
        z, mu, logvar = self.posterior(h_target, eps)
        if self.c.variant == "lp":
            _, mu_p, logvar_p = self.prior(h, torch.zeros_like(eps))
        else:
            mu_p, logvar_p = torch.zeros_like(mu), torch.zeros_like(mu)
        return [z], divergence(mu, logvar, mu_p, logvar_p) / batch

    def takes_skip(self, i: int, n_past: int) -> bool:
        return self.c.last_frame_skip or i < n_past or (self.c.skip == "paper" and i == n_past)

    def forward(self, frames: Tensor, eps: Tensor) -> Losses:
        """frames (B, T, C, H, W), eps (T - 1, B, z_dim)."""
        x = frames.transpose(0, 1)
        batch, n_frames = frames.shape[:2]
        self.init_hidden(batch)
        # SVG-LP encodes input and target of every step; the other scripts encode each frame of the clip once
        encoded = None if self.c.variant == "lp" else [self.encoder(frame) for frame in x]
        mse, kl, prediction = [], [], []
        skip: list[Tensor] = []
        for i in range(1, n_frames):
            h, skips = encoded[i - 1] if encoded else self.encoder(x[i - 1])
            h_target, _ = encoded[i] if encoded else self.encoder(x[i])
            if self.takes_skip(i, self.c.n_past):
                skip = skips
            z, kl_i = self.latent(h, h_target, eps[i - 1], batch)
            x_hat = self.decoder(self.frame_predictor(torch.cat([h, *z], 1)), skip)
            mse.append(F.mse_loss(x_hat, x[i]))
            kl.append(kl_i)
            prediction.append(x_hat)
        mses, kls = torch.stack(mse), torch.stack(kl)
        return Losses(mses.sum() + self.c.beta * kls.sum(), mses, kls, torch.stack(prediction, 1))

    def generate(self, frames: Tensor, n_future: int, eps: Tensor) -> Tensor:
        """One sample: frames (B, n_past, ...), eps (n_past + n_future - 1, B, z_dim) -> (B, n_past + n_future, ...).

        BatchNorm follows self.training, as in the published scripts (SVG-LP: train, SVG-FP: eval).
        """
        x = frames.transpose(0, 1)
        n_past, batch = x.shape[:2]
        self.init_hidden(batch)
        video, x_in = [x[0]], x[0]
        skip: list[Tensor] = []
        for i in range(1, n_past + n_future):
            h, skips = self.encoder(x_in)
            if self.takes_skip(i, n_past):
                skip = skips
            z = []
            if self.c.variant != "det":
                mu_p, logvar_p = torch.zeros_like(eps[i - 1]), torch.zeros_like(eps[i - 1])
                if self.c.variant == "lp":
                    _, mu_p, logvar_p = self.prior(h, eps[i - 1])
                z = [mu_p + eps[i - 1] * (0.5 * logvar_p).exp()]
            if i < n_past:
                if self.c.variant != "det":
                    sample, mu, _ = self.posterior(self.encoder(x[i])[0], eps[i - 1])
                    z = [sample if self.c.variant == "lp" else mu]
                self.frame_predictor(torch.cat([h, *z], 1))
                x_in = x[i]
            else:
                x_in = self.decoder(self.frame_predictor(torch.cat([h, *z], 1)), skip)
            video.append(x_in)
        return torch.stack(video, 1)
