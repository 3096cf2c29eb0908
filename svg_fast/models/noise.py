"""The noise of rollouts, which belongs to a sample and a clip, whatever is worked off together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import ops

if TYPE_CHECKING:
    from .svg import SVG

_SEED_LIMIT = 2**63


class Noise:
    """Standard normal noise (T - 1, S, B, z_dim), or given latents in its place, of which chunks are asked for.

    The noise of a sample, for all B clips, is Philox's, keyed by (seed, number of the sample): it does not depend on S
    or on what is asked for at once, and a longer rollout begins with the shorter one's. z_dim is zero for the
    deterministic model.
    """

    def __init__(
        self,
        model: SVG,
        shape: Sequence[int],
        eps: Tensor | None,
        z: Tensor | None,
        seed: int | None,
        generator: torch.Generator | None,
    ) -> None:
        """At most one of eps and z, which have that shape, seed and generator; ValueError otherwise."""
        self.like = model.frame_predictor.embed.weight
        if sum(source is not None for source in (eps, z, seed, generator)) > 1:
            raise ValueError("give one of eps, z, seed and generator: each says by itself what the latents are")
        self.shape, self.given = tuple(shape), eps if z is None else z
        if model.config.variant == "det":
            if self.given is not None:
                raise ValueError("the deterministic model has no latent: eps and z must be None")
            self.shape = (*self.shape[:3], 0)
        for name, tensor in (("eps", eps), ("z", z)):
            if tensor is not None and tuple(tensor.shape) != self.shape:
                wanted = f"{list(self.shape)} (T - 1, S, B, z_dim)"
                raise ValueError(f"{name} must have shape {wanted}, got {list(tensor.shape)}")
        if seed is not None and not 0 <= seed < _SEED_LIMIT:
            raise ValueError(f"seed must be in [0, 2**63), got {seed}")
        device = self.like.device
        if seed is None:
            self.seed = draw_seed(generator, device)
        else:  # filled there: a tensor made of numbers would be sent, and waited for
            self.seed = torch.full((2,), seed, dtype=torch.int64, device=device)
            self.seed[1:].zero_()

    def of(self, samples: range, clips: range) -> Tensor:
        """(T - 1, S', B', z_dim) of these samples and clips, in the model's dtype, in memory of its own."""
        if self.given is not None:
            chosen = self.given[:, samples.start : samples.stop, clips.start : clips.stop]
            return chosen.to(self.like, copy=True)
        steps, _, batch, z_dim = self.shape
        zeros = self.like.new_zeros(steps, batch, z_dim)
        drawn = [ops.gaussian_rsample(zeros, zeros, seed=self._key(sample)) for sample in samples]
        return torch.stack(drawn, dim=1)[:, :, clips.start : clips.stop].contiguous()

    def _key(self, sample: int) -> Tensor:
        key = self.seed.clone()
        key[1:] += sample
        return key


def draw_seed(generator: torch.Generator | None, device: torch.device) -> Tensor:
    """A (seed, offset) for the Gaussian ops on `device`; without a generator it is drawn there, nothing is moved."""
    source = device if generator is None else generator.device
    return torch.randint(_SEED_LIMIT - 1, (2,), generator=generator, device=source).to(device)
