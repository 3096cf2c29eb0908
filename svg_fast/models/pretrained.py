"""Models in the hub's format: a folder with `model.safetensors`, the state_dict, and `config.json`, the settings.

Some small trained models come with the library, in `svg_fast/pretrained`, and are known by name.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..files import replacing
from .config import SVGConfig, from_json

if TYPE_CHECKING:
    from .svg import SVG

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT, VERSION = "svg_fast.model", 1
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_MAX_CONFIG = 2**20  # bytes; a configuration has less than 1 KiB
_SHIPPED = Path(__file__).parents[1] / "pretrained"


def shipped() -> dict[str, Path]:
    """The folders of the models that come with the library, by name."""
    return {config.parent.name: config.parent for config in sorted(_SHIPPED.glob(f"*/{CONFIG}"))}


def save(model: SVG, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write `model` to `folder`, which is made if need be; each file appears whole or not at all.

    dtype: in which weights of two or more dimensions are stored; biases and what BatchNorm keeps are few, and stay.

    Raises ValueError for a weight that is too great for it, or a type that is none of the four floating ones.
    """
    import safetensors.torch  # here, so that a model can be run where it is not installed (benchmarks/gpu_check.sh)

    if dtype is not None and dtype not in _FLOATS:
        raise ValueError(f"dtype must be of {', '.join(map(str, _FLOATS))}, got {dtype}")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    for name, tensor in tensors.items():
        if dtype is not None and tensor.dim() > 1:
            tensors[name] = tensor.to(dtype)
            if tensor.isfinite().all() and not tensors[name].isfinite().all():
                raise ValueError(f"{name} has numbers up to {tensor.abs().max():.3g}, too great for {dtype}")
    settings = {"format": FORMAT, "version": VERSION, **asdict(model.config)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in (
        (WEIGHTS, safetensors.torch.save(tensors, {"format": "pt"})),
        (CONFIG, (json.dumps(settings, indent=2) + "\n").encode()),
    ):
        with replacing(folder / name) as part:
            part.write_bytes(data)


def load(make: type[SVG], source: str | Path) -> SVG:
    """The model in a folder or, if there is none of that name, the one of `shipped` or of a repository of the hub.

    Raises FileNotFoundError for a folder without the two files, ValueError for files that are damaged, not a model of
    svg_fast, from a newer version, or at odds with each other; ImportError where the hub is wanted but its package
    huggingface_hub is not installed, and that package's own errors.
    """
    import safetensors

    folder = Path(source)
    if not folder.is_dir():
        folder = shipped().get(str(source)) or _download(str(source))
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} must hold {WEIGHTS} and {CONFIG}, {name} is missing")
    config = _read_config(folder / CONFIG)
    path = folder / WEIGHTS
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = list(file.keys())
            check_shapes(make, config, {name: file.get_slice(name).get_shape() for name in names})
            return filled(make, config, {name: file.get_tensor(name) for name in names})
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({error})") from error
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold the model of its {CONFIG}: {error}") from error


def check_shapes(make: type[SVG], config: SVGConfig, shapes: Mapping[str, Sequence[int]]) -> None:
    """Whether these are the names and shapes of the configured model's tensors; it is built without memory for them.

    Raises ValueError for the first that is missing, unknown or of another shape, and the errors of `skeleton`.
    """
    model = skeleton(make, config, len(shapes))
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in wanted.items():
        if name not in shapes:
            raise ValueError(f"{name} is missing")
        if list(shapes[name]) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {list(shapes[name])}")
    if unknown := sorted(shapes.keys() - wanted.keys()):
        raise ValueError(f"{ascii(unknown[0])[:200]} is not a tensor of the model")


def skeleton(make: type[SVG], config: SVGConfig, available: int) -> SVG:
    """The configured model on the meta device, without memory, whatever its size.

    Raises ValueError for more LSTM layers, each of which would be built, than there are tensors `available` for, and
    for sizes that no tensor can have.
    """
    stacks = config.predictor_rnn_layers, config.posterior_rnn_layers, config.prior_rnn_layers
    layers = sum(stacks[: {"det": 1, "fp": 2, "lp": 3}[config.variant]])
    if 4 * layers > available:
        raise ValueError(f"{layers} LSTM layers cannot be made of {available} tensors")
    try:
        with torch.device("meta"):
            return make(config)
    except (RuntimeError, TypeError) as error:  # some of torch's messages are pages
        raise ValueError("no model can have these sizes") from error


def filled(make: type[SVG], config: SVGConfig, tensors: Mapping[str, Tensor]) -> SVG:
    """A model of checked tensors, in eval mode on the CPU: float64 if any of them is, otherwise float32.

    Nothing is initialised first, so that no random number is drawn.

    Raises ValueError for weights of another type, such as quantised ones, which are not the numbers they stand for.
    """
    model = skeleton(make, config, len(tensors))
    dtypes = {name: tensors[name].dtype for name, x in model.state_dict().items() if x.is_floating_point()}
    for name, dtype in dtypes.items():
        if dtype not in _FLOATS:
            raise ValueError(f"{name} must be of {', '.join(map(str, _FLOATS))}, got {dtype}")
    model = model.to(reduce(torch.promote_types, dtypes.values(), torch.float32)).to_empty(device="cpu")
    model.load_state_dict(tensors)
    return model.eval()


def _read_config(path: Path) -> SVGConfig:
    with path.open("rb") as file:
        text = file.read(_MAX_CONFIG)
    try:
        settings: dict[str, Any] = json.loads(text)
        marker, version = settings.pop("format", None), settings.pop("version", None)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, or not the settings of a model ({error})") from error
    if marker != FORMAT or type(version) is not int:
        raise ValueError(f"{path} is not the settings of a model of svg_fast")
    if version > VERSION:
        raise ValueError(f"{path} has format {version}, this svg_fast reads up to {VERSION}: upgrade it")
    try:
        return from_json(SVGConfig, settings)
    except KeyError as error:
        raise ValueError(f"{path} has the setting {error}, which this svg_fast does not know: upgrade it") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} has a setting that is not allowed: {error}") from error


def _download(repository: str) -> Path:
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError(
            f"{repository} is not a folder, nor one of {', '.join(shipped())}, and to look for it on the Hugging Face"
            " hub takes the package huggingface_hub, which is not installed"
        ) from error
    return Path(hub.snapshot_download(repository, allow_patterns=[WEIGHTS, CONFIG]))
