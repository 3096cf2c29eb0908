"""What a run tells while it goes: progress bar, losses.csv and losses.png, TensorBoard scalars."""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ..evaluation.figures import loss_figure
from ..files import replacing
from .config import TrainConfig

_HEADER = "step,loss,mse,kl"
_ROW = re.compile(r"\d+(,[-+.\deinfa]+){3}")


class Report:
    """A context manager; losses are logged as published: mse and kl divided by T (though T - 1 terms are summed)."""

    def __init__(self, log_dir: Path, first: int, last: int, n_frames: int, training: TrainConfig) -> None:
        self.log_dir, self.n_frames, self.training = log_dir, n_frames, training
        self.csv = log_dir / "losses.csv"
        # what an interrupted run logged past its checkpoint will be logged again; a row cut short is left out
        rows = self.csv.read_text(errors="replace").splitlines() if self.csv.exists() and first else []
        kept = [row for row in rows if _ROW.fullmatch(row) and int(row.split(",")[0]) <= first]
        with replacing(self.csv) as part:
            part.write_text("\n".join([_HEADER, *kept, ""]))
        self.losses: list[tuple[float, ...]] = []  # of this epoch
        self.file = self.csv.open("a")
        self.writer = SummaryWriter(str(log_dir / "tensorboard"), purge_step=first + 1)
        self.bar = tqdm(total=last, initial=first, unit="step", dynamic_ncols=True, smoothing=0.05)

    def __enter__(self) -> Report:
        return self

    def step(self, step: int, loss: float, mse: float, kl: float) -> None:
        """Log one training step."""
        losses = {"loss": loss, "mse": mse / self.n_frames, "kl": kl / self.n_frames}
        self.losses.append(tuple(losses.values()))
        for name, value in losses.items():
            self.writer.add_scalar(f"train/{name}", value, step)
        self.file.write(f"{step},{','.join(f'{value:.9g}' for value in losses.values())}\n")
        self.bar.update(step - self.bar.n)
        rate = self.bar.format_dict["rate"] or (self.bar.n - self.bar.initial) / max(
            self.bar.format_dict["elapsed"], 1e-9
        )
        clips = {"clips/s": f"{rate * self.training.batch_size:.1f}"}
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in losses.items()} | clips, refresh=False)

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        self.writer.close()
        self.bar.close()
