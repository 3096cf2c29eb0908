"""Where models and test clips come from: any of the formats that hold a model, and the data that go with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..compat import load_published, read_options
from ..models import SVG
from ..models.pretrained import shipped
from ..training import TrainConfig, checkpoint, training_preset
from ..training.data import make_clips


@dataclass(frozen=True)
class Source:
    """A model and the settings of its training, as far as the file tells them."""

    model: SVG
    training: TrainConfig


def load_source(path: str | Path) -> Source:
    """The model of a training checkpoint (.safetensors), of a folder in the hub's format, or of a published checkpoint.

    Or of that name among those that come with the library.

    Raises the errors of `training.load_model`, `SVG.from_pretrained` or `compat.load_published`; FileNotFoundError.
    """
    path = Path(path)
    if path.is_dir():
        return Source(SVG.from_pretrained(path), TrainConfig())
    if str(path) in shipped():
        return Source(SVG.from_pretrained(path), training_preset(str(path)))
    if not path.exists():
        known = ", ".join(shipped())
        raise FileNotFoundError(f"{path} is no file or folder, nor a model that comes with the library ({known})")
    if path.suffix == ".safetensors":
        run = checkpoint.load(path)
        return Source(run.model(), run.training)
    return Source(load_published(path), _published_training(read_options(path)))


def _published_training(options: dict[str, Any]) -> TrainConfig:
    """What a published checkpoint's options say of its data."""
    dataset = str(options.get("dataset", "smmnist"))
    known: dict[str, Any] = {"dataset": dataset} if dataset in ("smmnist", "kth", "bair") else {}
    if isinstance(options.get("num_digits"), int) and options["num_digits"] > 0:
        known["num_digits"] = options["num_digits"]
    return TrainConfig(**known)


def clips_for(source: Source, n_clips: int, n_frames: int, data_root: Path | None, file: Path | None) -> Tensor:
    """Test clips (N, T, C, H, W) uint8 of the data that the model was trained on, or from a file.

    data_root: of the data set; None is that of the training run. file: see `load_clips`.

    Raises ValueError or FileNotFoundError where there are none that fit.
    """
    if file is not None:
        return load_clips(file, n_clips, n_frames)
    training = replace(source.training, data_root=data_root or source.training.data_root)
    data = make_clips(source.model.config, training, "test", n_frames)
    return data.clips(range(min(n_clips, len(data)))).frames


def load_clips(path: Path, n_clips: int, n_frames: int) -> Tensor:
    """The first n_clips (fewer where the file has fewer) and their first n_frames, (N, T, C, H, W) uint8.

    An .npy file of uint8, (N, T, H, W, C) or (N, T, H, W); it is mapped, not read whole, and nothing in it is executed.

    Raises ValueError for another file or too short clips, OSError where it cannot be opened.
    """
    try:
        clips = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} must be an .npy file of numbers ({error})") from error
    if not isinstance(clips, np.ndarray) or clips.dtype != np.uint8 or clips.ndim not in (4, 5):
        found = f"{clips.dtype} of shape {list(clips.shape)}" if isinstance(clips, np.ndarray) else "an archive"
        raise ValueError(f"{path} must hold uint8 of shape (N, T, H, W, C) or (N, T, H, W), got {found}")
    if clips.shape[1] < n_frames or not len(clips):
        raise ValueError(f"{path} must hold clips of at least {n_frames} frames, got shape {list(clips.shape)}")
    chosen = torch.from_numpy(np.array(clips[:n_clips, :n_frames]))
    return (chosen.unsqueeze(-1) if chosen.dim() == 4 else chosen).permute(0, 1, 4, 2, 3).contiguous()
