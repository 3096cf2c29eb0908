"""What a run needs before its first step: a device, data, a folder, and the model as its last checkpoint left it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..files import remove_leftovers, replacing
from ..models import SVG, SVGConfig
from ..models.config import uses_batch
from ..models.frame_network import synchronise_norms
from . import checkpoint
from .checkpoint import Checkpoint
from .config import TrainConfig
from .data import ClipData, make_clips
from .processes import Processes, local_device
from .profile import check_n_steps
from .sharding import like, load_optimizer_state, shard
from .step import TrainingStep, noise_on_device
from .trackers import find_function

if TYPE_CHECKING:
    from .report import Report

logger = logging.getLogger("svg_fast")

TEST_CLIPS = 5
CHECKPOINTS, SAMPLES = "checkpoints", "samples"
_EMBED = "frame_predictor.embed.weight"  # (rnn_size, g_dim + z_dim)


class Data(NamedTuple):
    """Training clips, the test clips (B, n_eval, C, H, W) of the sample strips, those of the validation (N, T, ...)."""

    train: ClipData
    test: Tensor
    validation: Tensor | None


def load_extras() -> tuple[type[Report], Callable[..., None]]:
    """What draws and reports, imported here so that the rest of the package works without it."""
    try:
        from ..evaluation.strips import write_strips
        from .report import Report
    except ModuleNotFoundError as error:
        raise ImportError(
            f"training needs {error.name}, which is not installed: pip install 'svg_fast[train]'"
        ) from error
    return Report, write_strips


def prepare_device(training: TrainConfig) -> torch.device:
    """The device to train on, tried; ValueError if it cannot be used."""
    if training.threads:
        torch.set_num_threads(training.threads)
    name = local_device(training.device) or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device must be one that torch can use here, got {name!r}") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)  # what NCCL's collectives of objects use
        torch.backends.cudnn.allow_tf32 = False  # torch's default for convolutions alone; float32 means float32
        return device
    if training.precision != "float32":
        raise ValueError(f"precision {training.precision} needs a GPU (a CPU is slower with it), got device {name!r}")
    if training.cuda_graph:
        raise ValueError(f"cuda_graph needs a GPU, got device {name!r}")
    return device


def check_settings(config: SVGConfig, training: TrainConfig, processes: Processes) -> None:
    """Settings that must fit each other; ValueError where they do not, or ModuleNotFoundError for the tracker's."""
    if training.n_eval <= config.n_past:
        raise ValueError(f"n_eval must be more than n_past = {config.n_past}, got {training.n_eval}")
    if training.free_bits and config.variant == "det":
        raise ValueError("free_bits are of a KL, which the deterministic model does not have")
    if training.fsdp and processes.group is None:
        raise ValueError("fsdp needs several processes: start them with torchrun")
    if training.cuda_graph and processes.group is not None:
        raise ValueError("cuda_graph needs a single process")
    smallest = training.batch_size // (training.accumulate * (1 if training.sync_batch_norm else processes.world_size))
    if smallest < 2 or training.batch_size < training.accumulate * processes.world_size:
        raise ValueError(
            f"batch_size must give every part of every process two clips (BatchNorm), got {training.batch_size} for"
            f" {processes.world_size} processes with {training.accumulate} parts each"
        )
    check_n_steps(training.profile)
    if training.tracker and processes.leads:
        find_function(training.tracker)


def make_data(config: SVGConfig, training: TrainConfig) -> Data:
    """The clips of a run; the errors of `make_clips`, and ValueError for too few of them."""
    n_frames = config.n_past + config.n_future
    train = make_clips(config, training, "train", n_frames)
    test = make_clips(config, training, "test", training.n_eval)
    n_clips = min(TEST_CLIPS, len(test))
    uses_batch(config, None, n_clips)  # or the sample strips would fail, after a whole epoch
    validation = None
    if training.validate:
        clips = make_clips(config, training, "validation", n_frames)
        validation = clips.clips(range(min(training.validate, len(clips)))).frames
        if len(validation) == 1 and config.sampling_statistics() == "batch":
            raise ValueError(
                "validate must find two clips or more for batch statistics (or set generation_statistics to running),"
                " got 1"
            )
    return Data(train, test.clips(range(n_clips)).frames, validation)


def prepare_folder(log_dir: Path) -> None:
    """Make the run's folders, and see that they can be written to: now, not after the first epoch."""
    folder = log_dir / CHECKPOINTS
    try:
        for path in (folder, log_dir / SAMPLES):
            path.mkdir(parents=True, exist_ok=True)
        for path in (log_dir, folder, log_dir / SAMPLES):
            remove_leftovers(path)
        with replacing(folder / "probe") as part:
            part.touch()
        (folder / "probe").unlink()
    except OSError as error:
        raise OSError(f"cannot write to --log-dir {log_dir}: {error.strerror or error}") from error


def find_run(
    log_dir: Path, resume: bool, config: SVGConfig, training: TrainConfig, origin: int, processes: Processes
) -> Checkpoint | None:
    """The newest whole checkpoint of log_dir, the same one in all processes; None where a run begins.

    Raises ValueError for a folder that holds a run without `resume`, CheckpointError for one of other settings.
    """
    folder = log_dir / CHECKPOINTS
    processes.barrier()  # until rank 0 has made it
    saved = checkpoint.find_all(folder)
    if saved and not resume:
        raise ValueError(f"{log_dir} already holds a run ({saved[-1].name}); give --resume or another --log-dir")
    run = checkpoint.newest(folder) if processes.leads else None
    name = processes.from_leader("" if run is None else checkpoint.path_of(folder, run.step).name)
    if not name:
        return None
    run = run or checkpoint.load(folder / name)
    checkpoint.check_same(run, config, training, origin)
    if processes.leads:
        logger.info("resuming at step %d", run.step)
    return run


def begin_with(model: SVG, source: Path) -> None:
    """Takes over the nets that another model has too, of whatever variant, with their statistics.

    The predictor's columns for z begin anew where the other model is deterministic, and are left out where this one is.

    Raises the errors of `checkpoint.load_model` (.safetensors) or `SVG.from_pretrained`; ValueError where a tensor of
    the same name has another shape.
    """
    other = checkpoint.load_model(source) if source.suffix == ".safetensors" else SVG.from_pretrained(source)
    own, given = model.state_dict(), other.state_dict()
    shared = sorted(own.keys() & given.keys())
    if "det" in (model.config.variant, other.config.variant):
        own[_EMBED], given[_EMBED] = (state[_EMBED][:, : model.config.g_dim] for state in (own, given))
    for name in shared:
        if own[name].shape != given[name].shape:
            raise ValueError(
                f"init must be a model of the same sizes: {name} must have shape {list(own[name].shape)}, "
                f"got {list(given[name].shape)} in {source}"
            )
    for name in shared:
        own[name].copy_(given[name])
    anew = sorted({name.partition(".")[0] for name in own.keys() - given.keys()})
    logger.info("beginning with the parameters of %s%s", source, f"; anew: {', '.join(anew)}" if anew else "")


def make_step(
    config: SVGConfig, training: TrainConfig, device: torch.device, processes: Processes, run: Checkpoint | None
) -> tuple[TrainingStep, torch.Generator]:
    """The training step of a new model, or as the checkpoint left it, and the generator of its seeds."""
    torch.manual_seed(training.seed)
    model = SVG(config).to(device)
    if run is not None:
        model.load_state_dict(run.parameters())
    elif training.init is not None:
        begin_with(model, training.init)
    if training.sync_batch_norm and processes.group is not None:
        synchronise_norms(model, processes.group)
    shard(model, training, processes)
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.Adam(model.parameters(), training.lr, (0.9, 0.999), fused=True, capturable=on_gpu)
    generator = torch.Generator().manual_seed(training.seed)
    if run is not None:
        load_optimizer_state(model, optimizer, run.adam())
        generator.set_state(run.tensors["generator"])
    noise = noise_on_device(training.seed, run.step if run else 0, device) if on_gpu else generator
    step = TrainingStep(model, optimizer, noise, training, processes)
    if run is not None:
        if step.average is not None:
            step.average.load_state_dict(like(run.average(), step.average.state_dict()))
        step.scaler.load_state_dict(step.scaler.state_dict() | run.scaler)
    return step, generator
