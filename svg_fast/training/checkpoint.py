"""Checkpoints: one safetensors file that holds all of a run, written whole or not at all.

Tensors `model.*` (the state_dict), `optimizer.<quantity>.<parameter>` and `generator`; the header's metadata holds the
format's version, the step and both configurations as JSON. Nothing in the file is ever executed.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import replacing
from ..models import SVG, SVGConfig
from ..models.config import from_json
from ..models.pretrained import skeleton
from .config import TrainConfig, differences

FORMAT_VERSION = 2
KEEP = 2  # the newest and, should a disk have lied about it, the one before


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: damaged, of another configuration, or from a newer version."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's content, the tensors still flat under their names in the file."""

    step: int
    config: SVGConfig
    training: TrainConfig
    origin: int  # CRC-32 of the digits or shards trained on
    tensors: dict[str, Tensor]

    def into(self, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> int:
        """Put a run back to where it was; returns the step."""
        model.load_state_dict(self._under("model."))
        state = {
            k: {key: self.tensors[f"optimizer.{key}.{name}"] for key in _ADAM_STATE}
            for k, (name, _) in enumerate(model.named_parameters())
        }
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        generator.set_state(self.tensors["generator"])
        return self.step

    def model(self) -> SVG:
        """The trained model, in eval mode."""
        model = SVG(self.config)
        model.load_state_dict(self._under("model."))
        return model.eval()

    def _under(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


_ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


def save(
    folder: Path,
    step: int,
    model: SVG,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    training: TrainConfig,
    origin: int,
) -> Path:
    """Write folder/step-<step>.safetensors and keep the `KEEP` newest; OSError leaves the others as they are."""
    import safetensors.torch  # here, so that a step can be timed where it is not installed (benchmarks/gpu_check.sh)

    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{name}"] = value
    tensors["generator"] = generator.get_state()
    header = {
        "format": "svg_fast.checkpoint",
        "version": FORMAT_VERSION,
        "step": step,
        "config": _to_json(model.config),
        "training": _to_json(training),
        "origin": origin,
    }
    path = folder / f"step-{step:08d}.safetensors"
    data = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        {key: json.dumps(value) for key, value in header.items()},
    )
    with replacing(path) as part:
        part.write_bytes(data)
    for old in find_all(folder)[:-KEEP]:
        old.unlink()
    return path


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises CheckpointError for a file that is damaged or not a checkpoint, or from a newer version; OSError if it
    cannot be opened.
    """
    import safetensors

    try:
        with path.open("rb"):
            pass
        with safetensors.safe_open(path, framework="pt") as file:
            header = _read_header(file.metadata() or {}, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or not a checkpoint ({error})") from error
    # whatever a damaged or hostile header makes of Python, it is the file that is wrong
    try:
        config, training = from_json(SVGConfig, header["config"]), _training_from_json(header["training"])
        found = Checkpoint(int(header["step"]), config, training, int(header["origin"]), tensors)
        unlike = _unlike(found)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{path} has a damaged header ({error})") from error
    if unlike or found.step < 0:
        raise CheckpointError(f"{path} does not hold what its header says (first: {unlike or 'a negative step'})")
    return found


def _unlike(found: Checkpoint) -> str | None:
    """The first tensor that is missing, of another shape or not a generator's; the model is built without memory."""
    model = skeleton(SVG, found.config, len(found.tensors))
    wanted = {f"model.{name}": tensor.shape for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        shapes = (torch.Size(()), parameter.shape, parameter.shape)
        wanted |= {f"optimizer.{key}.{name}": shape for key, shape in zip(_ADAM_STATE, shapes, strict=True)}
    wanted["generator"] = torch.Generator().get_state().shape
    for name, shape in wanted.items():
        if name not in found.tensors or found.tensors[name].shape != shape:
            return name
    try:
        torch.Generator().set_state(found.tensors["generator"])
    except (RuntimeError, TypeError):
        return "generator"
    return None


def load_model(path: str | Path) -> SVG:
    """The trained model of a checkpoint, in eval mode. The errors of `load`."""
    return load(Path(path)).model()


def check_same(checkpoint: Checkpoint, config: SVGConfig, training: TrainConfig, origin: int) -> None:
    """Whether a run with these settings continues the checkpoint's; CheckpointError names what differs."""
    unlike = [*differences(checkpoint.config, config), *differences(checkpoint.training, training)]
    if checkpoint.origin != origin:
        unlike.append("the data: another data_root")
    if unlike:
        raise CheckpointError(f"the checkpoint is of another configuration ({'; '.join(unlike)})")


def find_all(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    found = (path for path in folder.glob("step-*.safetensors") if re.fullmatch(r"step-\d{8,}", path.stem))
    return sorted(found, key=lambda path: int(path.stem.removeprefix("step-")))


def _read_header(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    if metadata.get("format") != '"svg_fast.checkpoint"':
        raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint of svg_fast")
    try:
        header = {key: json.loads(value) for key, value in metadata.items()}
        version = int(header["version"])
        if version == 1:
            header["origin"] = header["digits"]
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged header ({error})") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {version}, this svg_fast reads up to {FORMAT_VERSION}: upgrade it"
        )
    return header


def _to_json(config: Any) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}


def _training_from_json(values: dict[str, Any]) -> TrainConfig:
    root = values.get("data_root")
    return from_json(TrainConfig, values if root is None else {**values, "data_root": Path(root)})
