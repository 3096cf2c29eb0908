"""The 2018 checkpoints and module names: open, write and convert published checkpoints; `models` for old scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..models import SVG
from ..models.pretrained import shipped
from .archive import PublishedCheckpointError
from .published import load_published, read_options
from .saving import save_published

__all__ = ["PublishedCheckpointError", "convert", "load_published", "read_options", "save_published"]


def convert(source: str | Path, target: str | Path, dtype: torch.dtype | None = None) -> Path:
    """A model from one format to another; returns `target`.

    source: a published checkpoint, a folder in the hub's format, a checkpoint of a training run (.safetensors), or the
    name of a model that comes with the library.
    target: ending in .pth, a published checkpoint, with the training run's own options; otherwise a folder in the
    hub's format. dtype: in which the folder's weights are stored, such as torch.float16; None is the model's.

    Raises ValueError for a dtype of a .pth; the errors of `load_published`, `SVG.from_pretrained` or
    `training.load_model`, and of `save_published` or `SVG.save_pretrained`.
    """
    source, target = Path(source), Path(target)
    published = target.suffix == ".pth"
    if published and dtype is not None:
        raise ValueError(f"dtype is of a folder in the hub's format, got {dtype} for {target.name}")
    options: dict[str, Any] = {}
    if source.is_dir() or str(source) in shipped():
        model = SVG.from_pretrained(source)
    elif source.suffix == ".safetensors":
        from ..training import checkpoint  # needs what the extra `train` installs

        run = checkpoint.load(source)
        model = run.model()
        names = ("dataset", "num_digits", "lr", "niter", "epoch_size", "batch_size", "seed", "n_eval")
        options = {name: getattr(run.training, name) for name in names}
    else:
        model = load_published(source)
    if published:
        save_published(model, target, options)
    else:
        model.save_pretrained(target, dtype)
    return target
