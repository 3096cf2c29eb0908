"""Parameters, gradients and Adam's state sharded over the processes (`fully_shard`), and whole again for a checkpoint.

The model is one unit: its parameters are gathered for a step's passes, and only shards stay between steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..models import SVG
from .config import TrainConfig
from .processes import Processes

AdamState = dict[str, dict[str, Tensor]]  # by parameter: step, exp_avg, exp_avg_sq

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def shard(model: SVG, training: TrainConfig, processes: Processes) -> None:
    """Shard the parameters where the settings say so; before there is an optimizer."""
    if training.fsdp and processes.group is not None:
        # the prediction is a view, and nobody writes to it
        warnings.filterwarnings("ignore", r"FSDP2-wrapped module \(FSDPSVG\) returned a view tensor", UserWarning)
        fully_shard(model)


def whole_model_state(model: SVG) -> dict[str, Tensor]:
    """The state_dict, whole; of a sharded model on the CPU in rank 0 and empty elsewhere. All processes call it."""
    state: dict[str, Any] = (
        get_model_state_dict(model, options=_WHOLE) if isinstance(model, FSDPModule) else model.state_dict()
    )
    return state


def whole_optimizer_state(model: SVG, optimizer: torch.optim.Optimizer) -> AdamState:
    """Adam's state by the parameters' names; where and when as above."""
    if isinstance(model, FSDPModule):
        found: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=_WHOLE)
        return found.get("state", {})
    return {name: dict(optimizer.state[parameter]) for name, parameter in model.named_parameters()}


def load_optimizer_state(model: SVG, optimizer: torch.optim.Optimizer, state: AdamState) -> None:
    """Put such a state, whole in every process, into an optimizer that has not stepped yet."""
    groups: list[dict[str, Any]] = optimizer.state_dict()["param_groups"]
    names = [name for name, _ in model.named_parameters()]
    if isinstance(model, FSDPModule):
        groups = [{**groups[0], "params": names}]
        set_optimizer_state_dict(model, optimizer, {"state": state, "param_groups": groups}, options=_WHOLE)  # type: ignore[dict-item]
    else:
        numbered = {number: state[name] for number, name in enumerate(names)}
        optimizer.load_state_dict({"state": numbered, "param_groups": groups})


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sharded tensors as whole ones; all processes call it."""
    return {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}


def whole_copy(model: SVG) -> SVG | None:
    """The model itself, or of a sharded one a whole copy in rank 0, None elsewhere; all processes call it."""
    if not isinstance(model, FSDPModule):
        return model
    state = whole_model_state(model)
    if not state:
        return None
    weight = model.frame_predictor.embed.weight
    copy = SVG(model.config).to(weight.device, weight.dtype)
    copy.load_state_dict(state)
    return copy.train(model.training)


def like(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, sharded where those of the same names in `others` are."""
    return {
        name: distribute_tensor(tensor, other.device_mesh, other.placements) if isinstance(other, DTensor) else tensor
        for (name, tensor), other in ((item, others[item[0]]) for item in tensors.items())
    }
