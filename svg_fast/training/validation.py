"""The bound of clips that a run does not train on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..evaluation.bound import bound_terms, make_bound
from ..models import SVG
from .config import TrainConfig

COLUMNS = ("loss", "elbo", "mse", "kl")


def validate(model: SVG, clips: Tensor, training: TrainConfig, device: torch.device) -> dict[str, float]:
    """Clips (N, T, C, H, W) uint8 -> the training loss at the full beta; the bound in nats, mse and kl of a time step.

    In groups of about the run's batch size, with the BatchNorm statistics that the model samples with. Without a beta
    there is no bound: nan.
    """
    config = model.config
    statistics = config.sampling_statistics()
    groups = clips.tensor_split(max(len(clips) // training.batch_size, 1))
    terms = torch.zeros(2, clips.shape[1] - 1, dtype=torch.float64)
    for k, group in enumerate(groups):
        found = bound_terms(model, group.to(device), statistics, training.seed + k)
        terms += found.double().cpu() * (len(group) / len(clips))
    mse, kl = terms.sum(1).tolist()
    bound = make_bound(config, terms)
    steps = terms.shape[1]
    return {
        "loss": mse + config.beta * kl,
        "elbo": math.nan if bound is None else bound.elbo,
        "mse": mse / steps,
        "kl": kl / steps,
    }
