"""How a model is trained: one frozen dataclass, and the published settings by preset name."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..data.velocity import MOTIONS, Motion
from ..data.video_shards import Sampling, Starts
from ..models.config import preset
from .schedules import Optimisation

Dataset = Literal["smmnist", "kth", "bair", "videos"]
Precision = Literal["float32", "bf16", "fp16"]

_SEED_LIMIT = 2**63 - 1  # the next one is the test clips'


def _free(default: Any) -> Any:
    """A setting that a resumed run may change: the parameters reached at a given step do not depend on it."""
    return field(default=default, compare=False)


@dataclass(frozen=True)
class TrainConfig(Optimisation):
    """Settings of a training run; names and defaults are the paper's.

    dataset: SM-MNIST, or from shards KTH, BAIR or any videos. niter epochs of epoch_size steps; Adam with betas
    (0.9, 0.999). batch_size: clips of a step, over all processes and parts together, so that the learning rate means
    the same whatever their number.
    accumulate: parts that each process works its clips off in, one after another, to save memory; the gradient is that
    of the mean over all clips of the step. sync_batch_norm: BatchNorm's statistics over all processes, else over those
    of a process and part, as published. fsdp: parameters, gradients and Adam's state sharded over the processes.
    compile: the model's passes by torch.compile.
    data_root: folder with MNIST's idx files, where None takes scikit-learn's digits; of the other data sets, what
    `svg-fast data convert` made. download: fetch MNIST into data_root. num_digits, motion: of SM-MNIST.
    init: a model whose parameters a new run begins with, a checkpoint or what `SVG.from_pretrained` takes; nets that it
    lacks begin anew.
    sampling: of clips of the other data sets: independent draws, or epochs in which each clip comes once; starts: of
    clips in longer ones, random or the first frame; None for either is as published, and for videos epochs with random
    starts. mirror: half of their clips left to right. seed: of initialisation, data and noise.
    validate: clips of which the bound is taken after each epoch, to validation.csv; 0 for none. Of SM-MNIST they are
    other clips of the training digits; of the other data sets, hold_out, a fraction of the training sources, is kept
    for them and not trained on.
    n_eval: frames of the sample strips. n_samples: futures drawn for each, of which the best is shown.
    checkpoint_every: steps between checkpoints, beside the one that ends each epoch; 0 for those alone. keep: newest
    checkpoints that stay.
    device: "cpu", "cuda", ...; None takes a GPU where there is one. threads: of the CPU; 0 leaves torch's choice.
    precision: float32, in which TF32 has no part; or on a GPU bf16 or fp16: products and activations in that type;
    parameters, gradients, Adam's state, BatchNorm's statistics, the LSTMs' cell states, KL and losses stay float32.
    With fp16 the loss is scaled so that gradients do not vanish; a step whose gradients overflow is left out.
    cuda_graph: whether a step is launched as one CUDA graph; None: on a GPU with one process and one part, neither
    compiled nor profiled, yes. Where a capture fails, the log says so and kernels are launched one by one. True
    elsewhere is an error.
    profile: steps that are timed by part, after a few; written to the folder `profile` of the run. tracker: a function
    "module:function" that is told the scalars too; see docs/scale.md.

    Raises ValueError for a value that is not allowed.
    """

    dataset: Dataset = "smmnist"
    niter: int = _free(300)
    epoch_size: int = 600
    batch_size: int = 100
    accumulate: int = 1
    sync_batch_norm: bool = False
    fsdp: bool = _free(False)
    compile: bool = _free(False)
    seed: int = 1
    num_digits: int = 2
    motion: Motion = "uniform"
    sampling: Sampling | None = None
    starts: Starts | None = None
    mirror: bool = False
    data_root: Path | None = _free(None)
    init: Path | None = None
    download: bool = _free(False)
    hold_out: float = 0.0
    validate: int = _free(0)
    n_eval: int = _free(30)
    n_samples: int = _free(20)
    checkpoint_every: int = _free(0)
    keep: int = _free(2)
    device: str | None = _free(None)
    threads: int = _free(0)
    precision: Precision = "float32"
    cuda_graph: bool | None = _free(None)
    profile: int = _free(0)
    tracker: str | None = _free(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in _AT_LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.seed >= _SEED_LIMIT:
            raise ValueError(f"seed must be below 2**63 - 1, got {self.seed}")
        for name in ("seed", "checkpoint_every", "threads", "validate", "profile"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.dataset == "smmnist" and (self.sampling or self.starts or self.mirror or self.hold_out):
            raise ValueError("sampling, starts, mirror and hold_out are of clips in shards, got them for smmnist")
        if not 0 <= self.hold_out < 1:
            raise ValueError(f"hold_out must be at least 0 and below 1, got {self.hold_out}")
        if self.validate and self.dataset != "smmnist" and not self.hold_out:
            raise ValueError(f"validate needs a hold_out of {self.dataset}'s training sources, got none")
        if self.early_stop and not self.validate:
            raise ValueError("early_stop needs validate, a number of clips to take the bound of, got 0")
        if self.free_bits and self.accumulate > 1:
            raise ValueError("free_bits needs the KL of a step's clips at once: accumulate must be 1")
        if self.cuda_graph and self.accumulate > 1:
            raise ValueError("cuda_graph needs accumulate = 1")
        if self.cuda_graph and (self.compile or self.profile):
            raise ValueError("cuda_graph needs a step without compile and profile")
        if self.compile and self.profile:
            raise ValueError("profile needs a model that is not compiled, whose parts can be told")
        if self.dataset not in get_args(Dataset):
            raise ValueError(f"dataset must be one of {', '.join(get_args(Dataset))}, got {self.dataset!r}")
        if self.motion not in MOTIONS:
            raise ValueError(f"motion must be one of {', '.join(MOTIONS)}, got {self.motion!r}")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, got {self.precision!r}")
        if self.download and self.data_root is None:
            raise ValueError("download needs a data_root to put MNIST in, got none")
        if self.download and self.dataset != "smmnist":
            raise ValueError(f"download fetches MNIST, got the data set {self.dataset}: see docs/data.md")


_AT_LEAST = {"niter": 1, "epoch_size": 1, "batch_size": 2, "accumulate": 1, "num_digits": 1, "n_samples": 1, "keep": 1}


def differences(old: Any, new: Any) -> list[str]:
    """What keeps two configurations of one class from being equal, as "name: old, not new"."""
    pairs = [(f.name, getattr(old, f.name), getattr(new, f.name)) for f in fields(old) if f.compare]
    return [f"{name}: {a!r}, not {b!r}" for name, a, b in pairs if a != b]


def to_json(settings: Any) -> dict[str, Any]:
    """A dataclass of settings in JSON's types."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()}


def training_preset(name: str) -> TrainConfig:
    """The training settings that go with `svg_fast.preset(name)`; the same errors."""
    preset(name)
    return _PRESETS.get(name, _PRESETS[name.partition("-")[0]])


_PAPER = TrainConfig()
_ONE_DIGIT = replace(
    _PAPER,
    niter=13,
    epoch_size=500,
    batch_size=16,
    num_digits=1,
    lr_schedule="cosine",
    validate=128,
    n_eval=20,
    checkpoint_every=250,
)
_WARMED = replace(_ONE_DIGIT, beta_schedule="warmup", beta_warmup=1000)
_PRESETS = {
    "smmnist": _PAPER,
    "kth": replace(_PAPER, dataset="kth", lr=8e-4),
    "bair": replace(_PAPER, dataset="bair"),
    "smmnist-small": replace(
        _PAPER, niter=6, epoch_size=250, batch_size=8, num_digits=1, n_eval=20, checkpoint_every=125
    ),
    "smmnist-1digit-lp": _WARMED,
    "smmnist-1digit-fp": _WARMED,
    "smmnist-1digit-det": _ONE_DIGIT,
    "smmnist-1digit-lp-nonuniform": replace(_WARMED, motion="nonuniform"),
}
