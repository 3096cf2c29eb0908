"""What a run tells while it goes: progress bar, losses.csv and losses.png, validation.csv, TensorBoard, a tracker."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ..evaluation.figures import loss_figure
from ..files import replacing
from ..models import SVGConfig
from .config import TrainConfig, to_json
from .trackers import Tracker, make_tracker
from .validation import COLUMNS

_HEADER = "step,loss,mse,kl"
_VALUE = r"[-+.\deinfa]+"


class Report:
    """A context manager; losses are logged as published: mse and kl divided by T (though T - 1 terms are summed)."""

    def __init__(self, log_dir: Path, first: int, last: int, config: SVGConfig, training: TrainConfig) -> None:
        self.log_dir, self.training = log_dir, training
        self.n_frames = config.n_past + config.n_future
        self.csv, self.validation_csv = log_dir / "losses.csv", log_dir / "validation.csv"
        # what an interrupted run logged past its checkpoint will be logged again; a row cut short is left out
        _begin(self.csv, _HEADER, first)
        self.file = self.csv.open("a", buffering=1)  # a line at a time: `svg-fast runs` looks at what was last written
        if training.validate:
            _begin(self.validation_csv, ",".join(("step", *COLUMNS)), first)
        self.losses: list[tuple[float, ...]] = []  # of this epoch
        self.clips_per_second: float | None = None
        self.tracker: Tracker | None = None
        if training.tracker:
            settings = {"model": asdict(config), "training": to_json(training)}
            self.tracker = make_tracker(training.tracker, log_dir, settings)
        self.writer = SummaryWriter(str(log_dir / "tensorboard"), purge_step=first + 1)
        self.bar = tqdm(total=last, initial=first, unit="step", dynamic_ncols=True, smoothing=0.05)

    def __enter__(self) -> Report:
        return self

    def step(self, step: int, loss: float, mse: float, kl: float) -> None:
        """Log one training step."""
        losses = {"loss": loss, "mse": mse / self.n_frames, "kl": kl / self.n_frames}
        self.losses.append(tuple(losses.values()))
        self._scalars("train", losses, step)
        self.file.write(_row(step, losses))
        self.bar.update(step - self.bar.n)
        progress = self.bar.format_dict
        rate = progress["rate"] or (self.bar.n - self.bar.initial) / max(progress["elapsed"], 1e-9)
        self.clips_per_second = rate * self.training.batch_size
        clips = {"clips/s": f"{self.clips_per_second:.1f}"}
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in losses.items()} | clips, refresh=False)

    def validation(self, step: int, found: Mapping[str, float]) -> None:
        """Log the `validate` of the epoch that ends at `step`."""
        self._scalars("validation", found, step)
        with self.validation_csv.open("a") as file:
            file.write(_row(step, found))
        self.bar.write(f"validation: loss {found['loss']:.4f}, bound {found['elbo']:.1f} nats a frame")

    def validation_losses(self) -> dict[int, float]:
        """Of all epochs so far, by their last steps; always the written ones, or a resumed run would compare others."""
        if not self.training.validate:
            return {}
        rows = (row.split(",") for row in self.validation_csv.read_text().splitlines()[1:])
        return {int(row[0]): float(row[1]) for row in rows}

    def epoch(self, step: int, strips: Path) -> None:
        """Say how the epoch that ends at `step` went, and where its pictures are."""
        self.flush()
        loss_figure(self.csv, self.log_dir / "losses.png")
        loss, mse, kl = (sum(column) / len(column) for column in zip(*self.losses, strict=True))
        self.losses.clear()
        epoch = step // self.training.epoch_size
        self.bar.write(f"epoch {epoch}/{self.training.niter}: loss {loss:.4f}, mse {mse:.5f}, kl {kl:.3f}; {strips}")

    def flush(self) -> None:
        self.file.flush()
        self.writer.flush()

    def _scalars(self, group: str, scalars: Mapping[str, float], step: int) -> None:
        named = {f"{group}/{name}": value for name, value in scalars.items()}
        for name, value in named.items():
            self.writer.add_scalar(name, value, step)
        if self.tracker is not None:
            self.tracker.log(step, named)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        self.writer.close()
        self.bar.close()
        if self.tracker is not None:
            self.tracker.close()


class Silence:
    """What the other processes of a run tell: nothing."""

    clips_per_second: float | None = None

    def __enter__(self) -> Silence:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def validation_losses(self) -> dict[int, float]:
        return {}

    def _nothing(self, *what: Any) -> None:
        pass

    step = validation = epoch = flush = _nothing


def _begin(csv: Path, header: str, first: int) -> None:
    """Begin a table, or go on with the one that an interrupted run left, up to the step `first`."""
    row = re.compile(rf"\d+(,{_VALUE}){{{header.count(',')}}}")
    rows = csv.read_text(errors="replace").splitlines() if csv.exists() and first else []
    kept = [line for line in rows if row.fullmatch(line) and int(line.split(",")[0]) <= first]
    with replacing(csv) as part:
        part.write_text("\n".join([header, *kept, ""]))


def _row(step: int, values: Mapping[str, float]) -> str:
    return f"{step},{','.join(f'{value:.9g}' for value in values.values())}\n"
