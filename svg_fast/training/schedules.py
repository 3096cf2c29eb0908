"""What changes as training goes on: the weight of the KL, the learning rate, which steps' KL counts, when to stop.

Each is a function of the step about to be taken, counted from 1, or of what was measured so far, and of the settings:
a resumed run finds them again without a state of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from .processes import local

BetaSchedule = Literal["constant", "warmup", "cyclical"]
LRSchedule = Literal["constant", "cosine", "linear"]


@dataclass(frozen=True)
class Optimisation:
    """How the loss is weighed and followed; the defaults are the paper's: Adam at one learning rate, one beta.

    lr: Adam's learning rate. lr_schedule: constant, or from lr down to lr_min at the last step of the run, linearly or
    along half a cosine. lr_warmup: steps in which it first rises linearly, the last of them at lr.
    beta_schedule: constant; warmup, linear from 0 to beta over beta_warmup steps; or cyclical (Fu et al. 2019), such a
    ramp in the first half of every beta_cycle steps, then beta.
    free_bits: nats of KL that each time step has free: up to there it is not reduced (Kingma et al. 2016).
    grad_clip: the largest norm of all gradients together, greater ones are scaled down to it; 0 for none.
    ema: decay in [0, 1) of the moving average of the parameters, which samples and scores are then made with; 0 for
    none. early_stop: epochs without a lower validation loss after which a run ends; 0 for never.

    Raises ValueError for a value that is not allowed, or one that its schedule would not use.
    """

    lr: float = 2e-3
    lr_schedule: LRSchedule = "constant"
    lr_warmup: int = 0
    lr_min: float = 0.0
    beta_schedule: BetaSchedule = "constant"
    beta_warmup: int = 0
    beta_cycle: int = 0
    free_bits: float = 0.0
    grad_clip: float = 0.0
    ema: float = 0.0
    early_stop: int = field(default=0, compare=False)  # the parameters reached at a given step do not depend on it

    def __post_init__(self) -> None:
        for name, choices in (("lr_schedule", get_args(LRSchedule)), ("beta_schedule", get_args(BetaSchedule))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("lr", "lr_warmup", "beta_warmup", "beta_cycle", "free_bits", "grad_clip", "early_stop"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)}")
        if not self.lr:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be at least 0 and below 1, got {self.ema}")
        if not 0 <= self.lr_min <= self.lr:
            raise ValueError(f"lr_min must lie between 0 and lr = {self.lr}, got {self.lr_min}")
        if self.lr_min and self.lr_schedule == "constant":
            raise ValueError(f"lr_min = {self.lr_min} needs lr_schedule cosine or linear, got constant")
        for name, schedule, least in (("beta_warmup", "warmup", 1), ("beta_cycle", "cyclical", 2)):
            steps = getattr(self, name)
            if self.beta_schedule == schedule and steps < least:
                raise ValueError(f"beta_schedule {schedule} needs a {name} of at least {least} steps, got {steps}")
            if steps and self.beta_schedule != schedule:
                raise ValueError(f"{name} = {steps} needs beta_schedule {schedule}, got {self.beta_schedule}")


def beta_factor(settings: Optimisation, step: int) -> float:
    """What beta is multiplied with at this step, in [0, 1]; 0 at the first step of a ramp."""
    if settings.beta_schedule == "warmup":
        return min((step - 1) / settings.beta_warmup, 1.0)
    if settings.beta_schedule == "cyclical":
        cycle = settings.beta_cycle
        return min((step - 1) % cycle / (cycle / 2), 1.0)
    return 1.0


def learning_rate(settings: Optimisation, step: int, total: int) -> float:
    """The learning rate at this step of a run of `total` steps.

    A warm-up of W steps starts at lr / W, since a step at 0 would be lost, and step W is at lr; the decay begins there,
    or at the first step, and the last step is at lr_min.
    """
    top = max(settings.lr_warmup, 1)
    if step < top:
        return settings.lr * (step / top)
    if settings.lr_schedule == "constant":
        return settings.lr
    gone = min((step - top) / max(total - top, 1), 1.0)
    if settings.lr_schedule == "cosine":
        gone = (1 - math.cos(math.pi * gone)) / 2
    return settings.lr * (1 - gone) + settings.lr_min * gone


def ema_weight(settings: Optimisation, step: int) -> float:
    """The weight of the parameters after this step in their moving average, 1 - min(ema, (1 + n) / (10 + n)) for the
    n = step - 1 steps before.

    A young average spans about the last ninth of the run, and so lags little behind parameters that still move fast,
    and forgets the initial ones at once; correcting a constant decay's bias instead would weigh all steps so far alike.
    """
    return max(1 - settings.ema, 9 / (9 + step))


def free_kl(kl_per_step: Tensor, free_bits: float, global_kl_per_step: Tensor) -> Tensor:
    """The KL to optimise, a scalar: sum over time steps t of max(free_bits, kl_t) (Kingma et al. 2016, per time step).

    kl_per_step (T - 1,): means over this process's clips, in nats. global_kl_per_step (T - 1,): over the clips of all
    processes, which alone tell what a step's KL is: the maximum of a mean is not the mean of maxima. Where it exceeds
    free_bits, a process contributes its own mean, elsewhere the constant: then the means over the processes, weighted
    by their shares of the clips, of this value and its gradient are those of the sum above. Without free_bits, the sum.
    """
    if not free_bits:
        return kl_per_step.sum()
    # asked this way round, a KL that is not a number stays one
    return torch.where(global_kl_per_step <= free_bits, free_bits, kl_per_step).sum()


def should_stop(losses: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` epochs' validation losses, lower being better, brought none below all before them.

    losses: of all epochs so far. One that is not a number is no improvement. patience 0: never.
    """
    best, age = math.inf, 0
    for loss in losses:
        best, age = (loss, 0) if loss < best else (best, age + 1)
    return 0 < patience <= age


class Rates:
    """What a step takes from the schedules, as 0-dimensional tensors on the device: beta, lr and the average's weight.

    A CUDA graph reads them where they lie, so they are filled, never replaced. Filling waits for nothing: the number
    travels as an argument of the kernel that stores it.
    """

    def __init__(self, settings: Optimisation, beta: float, total: int, optimizer: torch.optim.Optimizer) -> None:
        """beta: the model's. total: steps of the run. The optimizer takes its learning rate from here from now on;
        loading its state replaces that, and comes before."""
        self.settings, self.full_beta, self.total = settings, beta, total
        parameter = local(optimizer.param_groups[0]["params"][0])
        device = parameter.device
        self.beta, self.ema_weight = parameter.new_zeros(()), parameter.new_zeros(())
        # fused Adam reads float32 on a GPU, and double on a CPU, where only float64 is the number itself
        self.lr = parameter.new_zeros((), dtype=torch.float64 if device.type == "cpu" else torch.float32)
        for group in optimizer.param_groups:
            group["lr"] = self.lr

    def set(self, step: int) -> None:
        """Make this the step about to be taken."""
        self.beta.fill_(self.full_beta * beta_factor(self.settings, step))
        self.lr.fill_(learning_rate(self.settings, step, self.total))
        self.ema_weight.fill_(ema_weight(self.settings, step))
