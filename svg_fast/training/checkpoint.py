"""Checkpoints: one safetensors file that holds all of a run, written whole or not at all.

Tensors `model.*` (the state_dict), `optimizer.<quantity>.<parameter>`, `ema.<parameter>` and `generator`; the header's
metadata holds the format's version, the step, both configurations and a checksum, as JSON. Nothing in the file is ever
executed, and it is the same file for any number of processes: sharded tensors are whole in it. (The storage format of
torch.distributed.checkpoint begins with a pickle.)
"""

from __future__ import annotations

import json
import logging
import re
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ..files import replacing
from ..models import SVG, SVGConfig
from ..models.config import from_json
from ..models.pretrained import skeleton
from .averaging import Average
from .config import TrainConfig, differences, to_json
from .sharding import AdamState, whole, whole_model_state, whole_optimizer_state

logger = logging.getLogger("svg_fast")

FORMAT_VERSION = 2


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
    scaler: dict[str, float] = field(default_factory=dict)  # `scaler_state` of fp16's

    def model(self) -> SVG:
        """The trained model, in eval mode; with the moving average of its parameters, where the run kept one."""
        model = SVG(self.config)
        model.load_state_dict(self.parameters() | self.average())
        return model.eval()

    def parameters(self) -> dict[str, Tensor]:
        """The model's state_dict."""
        return self._under("model.")

    def average(self) -> dict[str, Tensor]:
        """The moving average by the parameters' names; empty without one."""
        return self._under("ema.")

    def adam(self) -> AdamState:
        """Adam's state by the parameters' names."""
        names = (name.removeprefix("optimizer.step.") for name in self._under("optimizer.step."))
        return {name: {key: self.tensors[f"optimizer.{key}.{name}"] for key in _ADAM_STATE} for name in names}

    def _under(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


_ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")
_HEADER = {"format", "version", "step", "config", "training", "origin", "digits", "scaler", "crc"}


def snapshot(
    model: SVG, optimizer: torch.optim.Optimizer, generator: torch.Generator, average: Average | None = None
) -> dict[str, Tensor]:
    """Everything that a checkpoint holds, copied to the CPU; training may go on. All processes of a run call it; of a
    sharded model only rank 0 gets all of it."""
    tensors = {f"model.{name}": tensor for name, tensor in whole_model_state(model).items()}
    for name, state in whole_optimizer_state(model, optimizer).items():
        tensors |= {f"optimizer.{key}.{name}": state[key] for key in _ADAM_STATE}
    if average is not None:
        tensors |= {f"ema.{name}": tensor for name, tensor in whole(average.state_dict()).items()}
    tensors["generator"] = generator.get_state()
    return {name: t.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for name, t in tensors.items()}


def scaler_state(state: Mapping[str, Any]) -> dict[str, float]:
    """What changes in a GradScaler's state; empty where it is not enabled."""
    return {key: float(state[key]) for key in ("scale", "_growth_tracker") if key in state}


def write(folder: Path, run: Checkpoint, keep: int) -> Path:
    """Write folder/step-<step>.safetensors and keep the `keep` newest up to it; OSError leaves the others as they are.

    Files of later steps are damaged ones that the run was resumed behind: they take no other's place, and are replaced.
    """
    import safetensors.torch  # here, so that a step can be timed where it is not installed (benchmarks/gpu_check.sh)

    header = {
        "format": "svg_fast.checkpoint",
        "version": FORMAT_VERSION,
        "step": run.step,
        "config": to_json(run.config),
        "training": to_json(replace(run.training, tracker=None)),
        "origin": run.origin,
        "scaler": run.scaler,
    }
    metadata = {key: json.dumps(value) for key, value in header.items()}
    metadata["crc"] = json.dumps(_crc(metadata, run.tensors))
    path = path_of(folder, run.step)
    data = safetensors.torch.save(run.tensors, metadata)
    with replacing(path) as part:
        part.write_bytes(data)
    saved = find_all(folder)
    for old in saved[: saved.index(path) + 1][:-keep]:
        old.unlink()
    return path


def _crc(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of the metadata, and of all tensors, their names and types, in the order of their names."""
    crc = zlib.crc32(json.dumps(sorted((key, text) for key, text in metadata.items() if key != "crc")).encode())
    for name in sorted(tensors):
        crc = zlib.crc32(f"{name} {tensors[name].dtype}".encode(), crc)
        crc = zlib.crc32(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data, crc)
    return crc


class Writer:
    """Writes checkpoints in a thread of its own while training goes on, one at a time.

    A context manager, which waits for the last one. An error of a write, such as a full disk, is raised by whatever is
    called next.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.pool = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[Path] | None = None

    def __enter__(self) -> Writer:
        return self

    def save(self, run: Checkpoint) -> None:
        """Begin to write, once the one before is on the disk."""
        self.wait()
        self.pending = self.pool.submit(write, self.folder, run, self.keep)

    def wait(self) -> None:
        """Until the last one is on the disk."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown()
        try:
            self.wait()
        except OSError as failed:
            if kind is None:
                raise
            logger.warning("the last checkpoint was not written: %s", failed)  # beside the error that ends the run


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
            metadata = file.metadata() or {}
            header = _read_header(metadata, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or not a checkpoint ({error})") from error
    # whatever a damaged or hostile header makes of Python, it is the file that is wrong
    try:
        config, training = from_json(SVGConfig, header["config"]), _training_from_json(header["training"])
        scaler = scaler_state(header.get("scaler", {}))
        found = Checkpoint(int(header["step"]), config, training, int(header["origin"]), tensors, scaler)
        unlike = _unlike(found)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{path} has a damaged header ({error})") from error
    if unlike or found.step < 0:
        raise CheckpointError(f"{path} does not hold what its header says (first: {unlike or 'a negative step'})")
    if header["version"] > 1 and "crc" in header and header["crc"] != _crc(metadata, tensors):
        raise CheckpointError(f"{path} is damaged: its values have another checksum")
    return found


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of a folder that is whole; None where there are none.

    A damaged one is left where it is, with a warning; CheckpointError where all of them are.
    """
    failed: CheckpointError | None = None
    for path in reversed(find_all(folder)):
        try:
            return load(path)
        except CheckpointError as error:
            logger.warning("%s; going on from the one before", error)
            failed = failed or error
    if failed is not None:
        raise failed
    return None


def _unlike(found: Checkpoint) -> str | None:
    """The first tensor that is missing, of another shape or not a generator's; the model is built without memory."""
    model = skeleton(SVG, found.config, len(found.tensors))
    wanted = {f"model.{name}": tensor.shape for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        shapes = (torch.Size(()), parameter.shape, parameter.shape)
        wanted |= {f"optimizer.{key}.{name}": shape for key, shape in zip(_ADAM_STATE, shapes, strict=True)}
        if found.training.ema:
            wanted[f"ema.{name}"] = parameter.shape
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
    if training.lr_schedule != "constant" and checkpoint.training.niter != training.niter:
        unlike.append(f"niter, which the lr_schedule ends with: {checkpoint.training.niter}, not {training.niter}")
    if checkpoint.origin != origin:
        unlike.append("the data: another data_root")
    if unlike:
        raise CheckpointError(f"the checkpoint is of another configuration ({'; '.join(unlike)})")


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:08d}.safetensors"


def find_all(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    found = (path for path in folder.glob("step-*.safetensors") if re.fullmatch(r"step-\d{8,}", path.stem))
    return sorted(found, key=lambda path: int(path.stem.removeprefix("step-")))


def _read_header(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    if metadata.get("format") != '"svg_fast.checkpoint"':
        raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint of svg_fast")
    try:
        header = {key: json.loads(value) for key, value in metadata.items()}
        header["version"] = version = int(header["version"])
        if version == 1:
            header["origin"] = header["digits"]
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged header ({error})") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {version}, this svg_fast reads up to {FORMAT_VERSION}: upgrade it"
        )
    if unknown := header.keys() - _HEADER:
        raise CheckpointError(f"{path} has a damaged header (unknown: {min(unknown)!r})")
    return header


def _training_from_json(values: dict[str, Any]) -> TrainConfig:
    """Without a tracker, whose module would be imported."""
    paths = {name: Path(values[name]) for name in ("data_root", "init") if values.get(name) is not None}
    return from_json(TrainConfig, {**values, **paths, "tracker": None})
