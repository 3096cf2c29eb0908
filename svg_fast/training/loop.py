"""The training loop, to be read from top to bottom.

A run is a sequence of steps. Step n trains on the clips n * batch_size, ..., a clip depends on the seed and its index
alone, and so does its noise on the seed, n and the clip: the parameters after step n are a function of the settings,
the kind of device and how the clips are shared out. So a run that was interrupted at any moment goes on from its last
checkpoint and reaches, bit for bit on one CPU machine with one number of threads and processes, what it would have
reached undisturbed.

Under torchrun all processes run this function. Rank 0 writes files and says how it goes; at every step whose losses are
read back all of them learn the same losses and whether one was told to stop, and so they stay together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from ..graphs import Graphed
from ..models import SVG, SVGConfig
from . import checkpoint
from .checkpoint import Checkpoint
from .config import TrainConfig
from .data import ClipData
from .processes import joined, local, restarted
from .profile import Profile
from .record import Progress, recorded
from .schedules import should_stop
from .setup import (
    CHECKPOINTS,
    SAMPLES,
    Data,
    check_settings,
    find_run,
    load_extras,
    make_data,
    make_step,
    prepare_device,
    prepare_folder,
)
from .sharding import whole_copy
from .signals import Interrupted, catch_signals
from .step import TrainingStep, on_device
from .validation import validate

if TYPE_CHECKING:
    from .report import Report, Silence

LOG_EVERY = 10  # steps, on an accelerator; on a CPU every step is logged


class NonFiniteLoss(RuntimeError):  # noqa: N818 (it says what is the matter)
    """The loss is no longer a number; the last checkpoint is from before."""


def train(
    config: SVGConfig, training: TrainConfig, log_dir: Path, resume: bool = False, preset: str | None = None
) -> Path:
    """Train a model, in one process or in those of torchrun; returns the GIF of its last samples.

    Under log_dir: checkpoints/, samples/ (PNG and GIF of every epoch), losses.csv and losses.png, validation.csv,
    tensorboard/, run.json. resume: go on from the last checkpoint, if there is one; processes that torchrun started
    again always do. preset: the settings' name, for the record.

    Raises ValueError or FileNotFoundError for data, settings or a log_dir that do not fit, CheckpointError where a run
    cannot be resumed, ImportError without the extra `train`, NonFiniteLoss, and `Interrupted` when a signal ended the
    run in good order.
    """
    load_extras()
    device = prepare_device(training)
    with joined(device) as processes:
        check_settings(config, training, processes)
        with processes.one_first():  # which may download them
            data = make_data(config, training)
        origin = data.train.fingerprint()
        if processes.leads:
            prepare_folder(log_dir)
        run = find_run(log_dir, processes.any(resume or restarted()), config, training, origin, processes)
        step, generator = make_step(config, training, device, processes, run)
        try:
            return Run(step, generator, data, origin, log_dir, preset).go(run.step if run else 0)
        except OSError as error:
            if error.errno and not error.filename:
                error.filename = str(log_dir)  # a full disk does not say what it was full for
            raise


class Run:
    """A run that is set up: its step, its data, and where it writes."""

    def __init__(
        self,
        step: TrainingStep,
        generator: torch.Generator,
        data: Data,
        origin: int,
        log_dir: Path,
        preset: str | None,
    ) -> None:
        self.advance, self.generator, self.data, self.origin = step, generator, data, origin
        self.log_dir, self.preset = log_dir, preset
        self.model, self.training, self.processes = step.model, step.training, step.processes
        self.device = step.model.frame_predictor.embed.weight.device
        self.total = self.training.niter * self.training.epoch_size

    def go(self, first: int) -> Path:
        """Train from the step after `first` on."""
        training, processes, folder = self.training, self.processes, self.log_dir / CHECKPOINTS
        self.total = max(first, self.total)
        advance = self._graphed()
        with (
            catch_signals() as signals,
            self._recorded(first) as progress,
            self._report(first) as self.report,
            checkpoint.Writer(folder, training.keep) as self.writer,
            Profile(self.model, self.log_dir, first, training.profile if processes.leads else 0) as profile,
        ):
            # a run that was stopped after its checkpoint still owes that epoch's score and pictures
            if first and self._ends_epoch(first) and self._owes(first):
                self._sample(first)
            done = first
            for frames in () if self._has_had_enough() else self._batches(first):
                step = done + 1
                self.advance.rates.set(step)
                losses = advance(frames)
                scheduled = training.checkpoint_every and step % training.checkpoint_every == 0
                saves = self._ends_epoch(step) or bool(scheduled)
                # reading losses back stalls an accelerator: there, not every step
                stopping = bool(signals) and processes.group is None
                if self.device.type == "cpu" or saves or stopping or step % LOG_EVERY == 0:
                    values, (stopping, broken) = processes.agree(losses, bool(signals), bool(non_finite(self.model)))
                    if broken or not all(map(math.isfinite, values)):
                        self._give_up(step, values)
                    self.report.step(step, *values)
                done = progress.step = step
                progress.clips_per_second = self.report.clips_per_second
                if saves or stopping:
                    self._save(step)
                if self._ends_epoch(step) and not stopping:
                    self._epoch(step)
                    stopping = processes.any(bool(signals))
                if stopping:
                    self.writer.wait()
                    raise Interrupted(signals, checkpoint.path_of(folder, step))
                profile.step()
                if self._ends_epoch(step) and self._has_had_enough():
                    break
        return self._pictures(done)

    def _graphed(self) -> Callable[[Tensor], Tensor]:
        """The step, as one CUDA graph where that can be: collectives and profiles want it launched kernel by kernel."""
        training = self.training
        plain = self.processes.group is not None or training.accumulate > 1 or training.profile or training.compile
        if training.cuda_graph is False or plain:
            return self.advance
        return Graphed(self.advance, self.device, "the training step")

    def _batches(self, first: int) -> Iterator[Tensor]:
        """This process's frames (B, T, C, H, W) of the steps to come, on the device."""
        parts = self.advance.parts
        return on_device(
            batches(self.data.train, self.training.batch_size, parts[0].first, parts[-1].last, first, self.total),
            self.device,
        )

    @contextmanager
    def _recorded(self, first: int) -> Iterator[Progress]:
        if not self.processes.leads:
            yield Progress(first)
            return
        with recorded(
            self.log_dir,
            self.model.config,
            self.training,
            first=first,
            preset=self.preset,
            interruptions=(Interrupted, KeyboardInterrupt),
        ) as progress:
            yield progress

    def _report(self, first: int) -> Report | Silence:
        from .report import Report, Silence

        if not self.processes.leads:
            return Silence()
        return Report(self.log_dir, first, self.total, self.model.config, self.training)

    def _ends_epoch(self, step: int) -> bool:
        return step % self.training.epoch_size == 0

    def _pictures(self, step: int) -> Path:
        return self.log_dir / SAMPLES / f"epoch-{step // self.training.epoch_size:03d}.gif"

    def _owes(self, step: int) -> bool:
        return self.processes.any(self.processes.leads and not self._pictures(step).exists())

    def _has_had_enough(self) -> bool:
        losses = list(self.report.validation_losses().values())
        return self.processes.any(should_stop(losses, self.training.early_stop))

    def _save(self, step: int) -> None:
        self.report.flush()
        tensors = checkpoint.snapshot(self.model, self.advance.optimizer, self.generator, self.advance.average)
        if self.processes.leads:
            scaler = checkpoint.scaler_state(self.advance.scaler.state_dict())
            run = Checkpoint(step, self.model.config, self.training, self.origin, tensors, scaler)
            self.writer.save(run)

    def _give_up(self, step: int, losses: list[float]) -> NoReturn:
        """NonFiniteLoss, the same in all processes, saying what to look at."""
        self.writer.wait()
        culprit = ""
        # the gradients of this step tell where it began; the parameters are all broken by now
        if names := non_finite(self.model, gradients=True):
            culprit = f"; first non-finite gradient: {names[0]}"
        elif names := non_finite(self.model):
            culprit = f"; first non-finite parameter: {names[0]}"
        saved = checkpoint.find_all(self.log_dir / CHECKPOINTS)
        kept = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint was written yet"
        message = (
            f"the loss is not finite at step {step}: mse {losses[1]:g}, kl {losses[2]:g}{culprit}. Look at a smaller"
            f" --lr (an exploding kl: a smaller --beta), then at the data; {kept}"
        )
        raise NonFiniteLoss(self.processes.from_leader(message))

    def _epoch(self, step: int) -> None:
        """Score and show what an epoch has brought, with the average of the parameters where there is one."""
        self._sample(step)
        self.report.epoch(step, self._pictures(step))

    def _sample(self, step: int) -> None:
        _, write_strips = load_extras()
        average = self.advance.average
        with average.swapped_in() if average is not None else nullcontext():
            model = whole_copy(self.model)
            if not self.processes.leads or model is None:
                return
            if self.data.validation is not None and step not in self.report.validation_losses():
                self.report.validation(step, validate(model, self.data.validation, self.training, self.device))
            test = self.data.test.to(self.device)
            write_strips(self._pictures(step), model, test, self.training.n_samples, seed=self.training.seed)


def batches(data: ClipData, batch_size: int, begin: int, end: int, first: int, last: int) -> Iterator[Tensor]:
    """Frames (B, T, C, H, W) of the steps first + 1 .. last: of each step's batch_size clips, begin .. end - 1.

    Made where they are wanted: a batch takes microseconds, and a second thread's parallel regions would cost the
    model's far more than that (measured: 1.6 times the step).
    """
    for step in range(first, last):
        yield data.clips(range(step * batch_size + begin, step * batch_size + end)).frames


def non_finite(model: SVG, gradients: bool = False) -> list[str]:
    """Names of the parameters, or gradients, that hold a number that is not finite; one value is read back for all.

    Of sharded ones, what this process holds.
    """
    tensors = {name: p.grad if gradients else p.detach() for name, p in model.named_parameters()}
    held = {name: local(tensor) for name, tensor in tensors.items() if tensor is not None}
    finite = torch.stack([tensor.isfinite().all() for tensor in held.values()])
    return [name for name, good in zip(held, finite.tolist(), strict=True) if not good]
