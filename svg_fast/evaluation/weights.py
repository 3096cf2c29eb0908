"""Weights of published networks, from files that the user points to; nothing in such a file is ever executed."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor, nn

_ZIP = b"PK\x03\x04"  # how a file of torch.save begins since 1.6


class _RefusedError(Exception):
    """What is wrong with a file that is not even handed to its reader."""


def load_weights(path: str | Path, what: str) -> dict[str, Tensor]:
    """A state_dict on the CPU, from a .safetensors file or one of torch.save, in the format of today or before 1.6.

    Memory is bounded by the file's size.

    Args:
        path: the file.
        what: what needs which weights and how to name them; the end of every error, so that it says what to do.

    Raises:
        FileNotFoundError: there is no such file; another OSError: it cannot be opened.
        ValueError: it is damaged, not a state_dict, or holds code: a TorchScript archive or a pickle with more than
            tensors.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            zipped = file.read(len(_ZIP)) == _ZIP
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist: {what}") from error
    try:
        if path.suffix == ".safetensors":
            import safetensors.torch  # here, so that what needs no weights runs where it is not installed

            content = safetensors.torch.load_file(path)
        else:
            if zipped:
                _check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes of its reader, it is the file that is wrong
        raise ValueError(f"{path} {_fault(error)}: {what}") from error
    if not isinstance(content, dict) or not all(isinstance(k, str) and _is_plain(v) for k, v in content.items()):
        raise ValueError(f"{path} is not a state_dict, which has names and tensors alone: {what}")
    return {name: tensor.detach() for name, tensor in content.items()}


def load_into(module: nn.Module, path: str | Path, what: str) -> None:
    """Load a state_dict into a module, which may be on the meta device, as float32 and ready for inference.

    Names that the module lacks are left out. Nothing is copied before every name and shape is known to fit. The
    arguments and errors of `load_weights`; ValueError too where the file does not fit, naming the first difference.
    """
    tensors = load_weights(path, what)
    # BatchNorm itself fills in its counter, which files of 2017 lack
    wanted = {name: x for name, x in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    for name, parameter in wanted.items():
        if name not in tensors:
            raise ValueError(f"{path} lacks {name}: {what}")
        shape, found = list(parameter.shape), tensors[name]
        if list(found.shape) != shape or not found.is_floating_point():
            got = f"{list(found.shape)} of {found.dtype}"
            raise ValueError(f"{path} does not fit, {name} must have shape {shape} of floats, got {got}: {what}")
    module.load_state_dict({name: tensors[name].float().contiguous() for name in wanted}, assign=True)
    module.eval().requires_grad_(False)


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any(PurePosixPath(record.filename).name == "constants.pkl" for record in records):
        raise _RefusedError("is a TorchScript archive, which holds code, not a state_dict")
    # torch.save stores its records as they are; compressed or overlapping ones could be of any size
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise _RefusedError("would unfold to more than its size")


def _fault(error: Exception) -> str:
    if isinstance(error, _RefusedError):
        return str(error)
    # PyTorch's own message is a page that ends in advice to trust the file
    named = re.search(r"GLOBAL (\S+)", str(error))
    return f"names {named[1]}, which is not run" if named else "is damaged or not a file of weights"


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
