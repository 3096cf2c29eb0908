"""The 2018 checkpoints and module names: open, write and convert published checkpoints; `models` for old scripts."""

from __future__ import annotations

from pathlib import Path

from ..models import SVG
from .archive import PublishedCheckpointError
from .published import load_published, read_options
from .saving import save_published

__all__ = ["PublishedCheckpointError", "convert", "load_published", "read_options", "save_published"]


def convert(source: str | Path, target: str | Path) -> Path:
    """A published checkpoint to a folder in the hub's format, or the other way round; returns `target`.

    source: a published checkpoint, whose model goes to the folder `target`; or a folder in the hub's format or a
    checkpoint of a training run (.safetensors), whose model goes to `target` as a published checkpoint, with the run's
    own options.

    Raises the errors of `load_published`, `SVG.from_pretrained` or `training.load_model`, and of `save_published`.
    """
    source, target = Path(source), Path(target)
    if source.is_dir():
        save_published(SVG.from_pretrained(source), target)
    elif source.suffix == ".safetensors":
        from ..training import checkpoint  # needs what the extra `train` installs

        run = checkpoint.load(source)
        names = ("dataset", "num_digits", "lr", "niter", "epoch_size", "batch_size", "seed", "n_eval")
        save_published(run.model(), target, {name: getattr(run.training, name) for name in names})
    else:
        load_published(source).save_pretrained(target)
    return target
