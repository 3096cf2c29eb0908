"""Weights of published networks, from files that the user points to; nothing in such a file is ever executed."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ..compat.archive import PublishedCheckpointError, opened
from ..compat.unpickle import Refusal, StoredTensor


def load_weights(path: str | Path, what: str) -> dict[str, Tensor]:
    """A state_dict on the CPU, from a .safetensors file or one of torch.save, in the format of today or before 1.6.

    Memory is bounded by the file's size. (torch.load's is not: it unfolds what is compressed, and reads a part of the
    file again for each of the names that a pickle may give it.)

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
        if path.suffix == ".safetensors":
            return _load_safetensors(path, what)
        with opened(path) as file:
            tree = file.tree
            if type(tree) is not dict or not all(type(value) is StoredTensor for value in tree.values()):
                raise Refusal("is not a state_dict, which has names and tensors alone")
            return file.read(tree)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist: {what}") from error
    except PublishedCheckpointError as error:
        raise ValueError(f"{path} {_fault(error)}: {what}") from error


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


def _load_safetensors(path: Path, what: str) -> dict[str, Tensor]:
    import safetensors.torch  # here, so that what needs no weights runs where it is not installed

    with path.open("rb"):
        pass
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # whatever a damaged file makes of its reader, it is the file that is wrong
        raise ValueError(f"{path} {_DAMAGED}: {what}") from error


def _fault(error: PublishedCheckpointError) -> str:
    if not isinstance(error.__cause__, Refusal):
        return _DAMAGED
    fault = str(error.__cause__)
    if fault.startswith("names __torch__."):
        return "is a TorchScript archive, which holds code, not a state_dict"
    return fault


_DAMAGED = "is damaged or not a file of weights"
