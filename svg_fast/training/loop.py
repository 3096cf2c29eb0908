"""The training loop, to be read from top to bottom.

A run is a sequence of steps. Step n trains on the clips n * batch_size, ..., a clip depends on the seed and its index
alone, and all noise comes from one generator, or on a GPU from the seed and n: the parameters after step n are a
function of the settings and the kind of device. So a run that was interrupted at any moment goes on from its last
checkpoint and reaches, bit for bit on one CPU machine with one number of threads, what it would have reached
undisturbed.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..files import remove_leftovers, replacing
from ..graphs import Graphed
from ..models import SVG, SVGConfig
from ..models.config import uses_batch
from . import checkpoint
from .config import TrainConfig
from .data import ClipData, make_clips
from .step import TrainingStep, noise_on_device, on_device

if TYPE_CHECKING:
    from .report import Report

logger = logging.getLogger("svg_fast")

TEST_CLIPS = 5
LOG_EVERY = 10  # steps, on an accelerator; on a CPU every step is logged
CHECKPOINTS, SAMPLES = "checkpoints", "samples"


class NonFiniteLoss(RuntimeError):  # noqa: N818 (it says what is the matter)
    """The loss is no longer a number; the last checkpoint is from before."""


class Interrupted(Exception):  # noqa: N818 (an answer to a signal, not an error)
    """SIGTERM or SIGINT came; the run is saved."""

    def __init__(self, signum: int, saved: Path) -> None:
        super().__init__(f"{signal.Signals(signum).name}: saved {saved}; continue with --resume")
        self.signum = signum


def train(config: SVGConfig, training: TrainConfig, log_dir: Path, resume: bool = False) -> Path:
    """Train a model; returns the GIF of its last samples.

    Under log_dir: checkpoints/, samples/ (PNG and GIF of every epoch), losses.csv and losses.png, tensorboard/.

    Raises ValueError or FileNotFoundError for data, settings or a log_dir that do not fit, CheckpointError where a run
    cannot be resumed, ImportError without the extra `train`, NonFiniteLoss, and `Interrupted` when a signal ended the
    run in good order.
    """
    report_class, write_strips = load_extras()
    device = prepare_device(training)
    data, test_frames = make_data(config, training)
    origin = data.fingerprint()
    torch.manual_seed(training.seed)
    model = SVG(config).to(device)
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.Adam(model.parameters(), training.lr, (0.9, 0.999), fused=True, capturable=on_gpu)
    generator = torch.Generator().manual_seed(training.seed)
    folder = prepare_folder(log_dir)
    saved = checkpoint.find_all(folder)
    if saved and not resume:
        raise ValueError(f"{log_dir} already holds a run ({saved[-1].name}); give --resume or another --log-dir")
    first = restore(saved, config, training, origin).into(model, optimizer, generator) if saved else 0
    total = max(first, training.niter * training.epoch_size)
    noise = noise_on_device(training.seed, first, device) if on_gpu else generator
    advance: Callable[[Tensor], Tensor] = TrainingStep(model, optimizer, noise, training.precision == "bf16")
    if training.cuda_graph is not False:
        advance = Graphed(advance, device, "the training step")

    def pictures(step: int) -> Path:
        return log_dir / SAMPLES / f"epoch-{step // training.epoch_size:03d}.gif"

    def sample(step: int) -> None:
        write_strips(pictures(step), model, test_frames.to(device), training.n_samples, seed=training.seed)

    n_frames = config.n_past + config.n_future
    with report_class(log_dir, first, total, n_frames, training) as report, catch_signals() as signals:
        # a run that was stopped after its checkpoint still owes that epoch's pictures
        if saved and first % training.epoch_size == 0 and not pictures(first).exists():
            sample(first)
        frames = on_device(batches(data, training.batch_size, first, total), device)
        for step, batch in enumerate(frames, start=first + 1):
            losses = advance(batch)
            ends_epoch = step % training.epoch_size == 0
            stopping = bool(signals)  # read once: a signal that comes later is the next step's, or the epoch's end's
            saves = ends_epoch or stopping or (training.checkpoint_every and step % training.checkpoint_every == 0)
            # reading losses back stalls an accelerator: there, not every step
            if device.type == "cpu" or saves or step % LOG_EVERY == 0:
                values = losses.tolist()
                check_finite(values, model, step, saved)
                report.step(step, *values)
            if saves:
                report.flush()
                saved.append(checkpoint.save(folder, step, model, optimizer, generator, training, origin))
            if ends_epoch and not stopping:
                sample(step)
                report.epoch(step, pictures(step))
            if stopping or (ends_epoch and signals):
                raise Interrupted(signals[0], saved[-1])
    return pictures(total)


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
    name = training.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device must be one that torch can use here, got {name!r}") from error
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # torch's default for convolutions alone; float32 means float32
        return device
    if training.precision != "float32":
        raise ValueError(f"precision {training.precision} needs a GPU (a CPU is slower with it), got device {name!r}")
    if training.cuda_graph:
        raise ValueError(f"cuda_graph needs a GPU, got device {name!r}")
    return device


def restore(saved: list[Path], config: SVGConfig, training: TrainConfig, origin: int) -> checkpoint.Checkpoint:
    """The newest checkpoint, if it continues a run of these settings; CheckpointError otherwise."""
    try:
        last = checkpoint.load(saved[-1])
    except checkpoint.CheckpointError as error:
        older = f"; delete it to go on from {saved[-2].name}" if len(saved) > 1 else ""
        raise checkpoint.CheckpointError(f"{error}{older}") from error
    checkpoint.check_same(last, config, training, origin)
    logger.info("resuming at step %d", last.step)
    return last


def make_data(config: SVGConfig, training: TrainConfig) -> tuple[ClipData, Tensor]:
    """Training clips, and the fixed test clips (B, n_eval, C, H, W) of the sample strips."""
    if training.n_eval <= config.n_past:
        raise ValueError(f"n_eval must be more than n_past = {config.n_past}, got {training.n_eval}")
    data = make_clips(config, training, "train", config.n_past + config.n_future)
    test = make_clips(config, training, "test", training.n_eval)
    n_clips = min(TEST_CLIPS, len(test))
    uses_batch(config, None, n_clips)  # or the sample strips would fail, after a whole epoch
    return data, test.clips(range(n_clips)).frames


def batches(data: ClipData, batch_size: int, first: int, last: int) -> Iterator[Tensor]:
    """Frames (B, T, C, H, W) of the steps first + 1 .. last.

    Made where they are wanted: a batch takes microseconds, and a second thread's parallel regions would cost the
    model's far more than that (measured: 1.6 times the step).
    """
    for step in range(first, last):
        yield data.clips(range(step * batch_size, (step + 1) * batch_size)).frames


def check_finite(losses: list[float], model: SVG, step: int, saved: list[Path]) -> None:
    """NonFiniteLoss, saying what to look at, unless loss, mse, kl and all parameters are finite."""
    parameters = dict(model.named_parameters())
    broken = non_finite(parameters)
    if all(map(math.isfinite, losses)) and not broken:
        return
    # the gradients of this step tell where it began; the parameters are all broken by now
    gradients = non_finite({name: p.grad for name, p in parameters.items() if p.grad is not None})
    culprit = f"gradient: {gradients[0]}" if gradients else f"parameter: {broken[0]}" if broken else ""
    where = f"; first non-finite {culprit}" if culprit else ""
    kept = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint was written yet"
    raise NonFiniteLoss(
        f"the loss is not finite at step {step}: mse {losses[1]:g}, kl {losses[2]:g}{where}. Look at a smaller --lr (an"
        f" exploding kl: a smaller --beta), then at the data; {kept}"
    )


def non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold a number that is not finite; one value is read back for all of them."""
    finite = torch.stack([tensor.detach().isfinite().all() for tensor in tensors.values()])
    return [name for name, good in zip(tensors, finite.tolist(), strict=True) if not good]


def prepare_folder(log_dir: Path) -> Path:
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
    return folder


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """A list that SIGTERM and SIGINT append themselves to; a second one of the same kind acts as it always did."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # Python delivers signals to the main thread alone
        return
    previous = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}

    def handle(signum: int, _frame: FrameType | None) -> None:
        caught.append(signum)
        signal.signal(signum, previous[signal.Signals(signum)])

    for signum in previous:
        signal.signal(signum, handle)
    try:
        yield caught
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
