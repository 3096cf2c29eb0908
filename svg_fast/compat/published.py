"""The 2018 checkpoints: whole pickled modules of the published classes, read into an `SVG`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..models import SVG, SVGConfig
from ..models.pretrained import check_shapes, filled
from .archive import PublishedCheckpointError, opened
from .unpickle import NAMESPACE, OPTIMIZERS, Holder, Named, Refusal, StoredTensor

__all__ = ["PublishedCheckpointError", "load_published", "read_options"]

_RECURRENT = {
    "frame_predictor": "models.lstm.lstm",
    "posterior": "models.lstm.gaussian_lstm",
    "prior": "models.lstm.gaussian_lstm",
}
_OPTIONAL = ("posterior", "prior")
# What the options say where the tensors do not; the last three where a variant has no such net.
_TOLD = ("n_past", "n_future", "beta", "last_frame_skip", "z_dim", "posterior_rnn_layers", "prior_rnn_layers")
# Limits to what a network may be walked for, which can be inside itself: the published ones reach 50 and 500.
_LONGEST_NAME, _MOST_PARTS = 200, 5000
_LONGEST_LIST = 100  # of an option's values: a million options can be the same list of a million
_MEAN, _COUNTED = ".running_mean", ".num_batches_tracked"  # of a BatchNorm, the second since torch 0.4.1


def load_published(path: str | Path) -> SVG:
    """The model of a published checkpoint, in eval mode on the CPU, whatever device it was trained on.

    A dict {encoder, decoder, frame_predictor, posterior, prior, opt} that `torch.save` wrote, in the file format of
    2018 or today's: SVG-LP has all of them, SVG-FP no prior, the deterministic baseline no posterior either. The
    tensors' shapes say what the model is, `opt` the rest. Nothing that the file names is imported or called.

    Raises PublishedCheckpointError for a file that is truncated or damaged, names anything beside the published
    classes, or contradicts itself; OSError where it cannot be opened.
    """
    with opened(Path(path)) as file:
        nets, options = _parts(file.tree)
        stored = {name: tensor for net, holder in nets.items() for name, tensor in _tensors(net, holder)}
        shapes = {name: tensor.size for name, tensor in stored.items()}
        config = _config(nets, shapes, options)
        # the counters that torch 0.4.0 and older did not have count from 0
        norms = (name.removesuffix(_MEAN) for name in shapes if name.endswith(_MEAN))
        counters = {norm + _COUNTED: torch.tensor(0) for norm in norms if norm + _COUNTED not in shapes}
        try:
            check_shapes(SVG, config, shapes | dict.fromkeys(counters, ()))
        except ValueError as error:
            raise Refusal(f"does not hold the networks of its classes: {error}") from error
        return filled(SVG, config, file.read(stored) | counters)


def read_options(path: str | Path) -> dict[str, Any]:
    """The training options `opt` of a published checkpoint: dataset, num_digits, lr and whatever else it was told.

    Plain values (numbers, strings, None, and short lists of these) by name; the optimiser's class is its name, as on
    the command line; what else there may be is left out. The errors of `load_published`.
    """
    with opened(Path(path)) as file:
        _, options = _parts(file.tree)
        return {name: value for name, value in options.items() if _is_plain(value)}


def _parts(tree: Any) -> tuple[dict[str, Holder], dict[str, Any]]:
    """The networks by name, and the options."""
    if type(tree) is not dict:
        raise Refusal("is not a published checkpoint: it must hold a dictionary of networks")
    found: dict[str, Holder] = {}
    for name in ("encoder", "decoder", *_RECURRENT, "opt"):
        part = tree.get(name)
        if type(part) is Holder:
            found[name] = part
        elif part is not None or name not in _OPTIONAL:
            raise Refusal(f"is not a published checkpoint: {name} must be a whole module, or options, of the scripts")
    opt = found.pop("opt")
    if opt.name != NAMESPACE:
        raise Refusal(f"has options in a {opt.name}, wanted {NAMESPACE}")
    options = dict(opt.state)
    optimizer = options.get("optimizer")
    if type(optimizer) is Named:
        options["optimizer"] = OPTIMIZERS.get(optimizer.name)
    return found, options


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple):
        return len(value) <= _LONGEST_LIST and all(
            item is None or type(item) in (bool, int, float, str) for item in value
        )
    return value is None or type(value) in (bool, int, float, str)


def _shown(value: Any) -> str:
    return repr(value)[:100] if _is_plain(value) else "something else"


def _tensors(net: str, holder: Holder) -> Iterator[tuple[str, StoredTensor]]:
    """A network's parameters and buffers under their state_dict names, all within their storages."""
    waiting, seen = [(net, holder)], 0
    while waiting:
        name, module = waiting.pop()
        for kind in ("_parameters", "_buffers", "_modules"):
            for key, value in module.state.get(kind, {}).items():
                full, seen = f"{name}.{key}", seen + 1
                if len(full) > _LONGEST_NAME or seen > _MOST_PARTS:
                    raise Refusal(f"has more modules, or deeper ones, in its {net} than any published network")
                if type(value) is StoredTensor:
                    value.check()
                    yield full, value
                elif type(value) is Holder:
                    waiting.append((full, value))


def _backbone(nets: Mapping[str, Holder]) -> tuple[str, int]:
    """Backbone and image size in pixels of the networks' classes, which must fit each other."""
    module, _, cls = nets["encoder"].name.rpartition(".")
    if cls != "encoder":
        raise Refusal(f"has a {nets['encoder'].name} for its encoder")
    wanted = {"decoder": f"{module}.decoder", **_RECURRENT}
    for net, name in wanted.items():
        if net in nets and nets[net].name != name:
            raise Refusal(f"has a {nets[net].name} for its {net}, wanted {name}")
    if "prior" in nets and "posterior" not in nets:
        raise Refusal("has a prior but no posterior")
    backbone, _, size = module.removeprefix("models.").partition("_")
    return backbone, int(size)


def _dimensions(nets: Mapping[str, Holder], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What classes and shapes say, under the options' names; and nf, which is none of them."""
    backbone, size = _backbone(nets)

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if len(shapes.get(name, ())) != rank:
            raise Refusal(f"does not hold the networks of its classes: {name} must have {rank} dimensions")
        return shapes[name]

    nf, channels, *_ = shape("encoder.c1.main.0.weight" if backbone == "dcgan" else "encoder.c1.0.main.0.weight", 4)
    found: dict[str, Any] = {"model": backbone, "image_width": size, "channels": channels, "nf": nf}
    found["g_dim"] = shape("encoder.c5.0.weight" if size == 64 else "encoder.c6.0.weight", 4)[0]
    found["rnn_size"] = shape("frame_predictor.embed.weight", 2)[0]
    if "posterior" in nets:
        found["z_dim"] = shape("posterior.mu_net.weight", 2)[0]
    for net in [net for net in _RECURRENT if net in nets]:
        layers = f"{net.removeprefix('frame_')}_rnn_layers"
        found[layers] = sum(name.startswith(f"{net}.lstm.") and name.endswith(".bias_hh") for name in shapes)
    return found


def _config(nets: Mapping[str, Holder], shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]) -> SVGConfig:
    """The settings that classes and shapes imply, and of the options what these cannot say."""
    found = _dimensions(nets, shapes)
    for name, value in found.items():
        if name in options and options[name] != value:
            raise Refusal(
                f"contradicts itself: its options say {name} = {_shown(options[name])}, its networks {value!r}"
            )
    defaults = SVGConfig()
    for name in _TOLD:
        default = getattr(defaults, name)
        value = found.setdefault(name, options.get(name, default))
        if type(value) is not type(default) and (name != "beta" or type(value) is not int):
            raise Refusal(f"has the option {name} = {_shown(value)}, which must be {type(default).__name__}")
    found["backbone"], found["image_size"] = found.pop("model"), found.pop("image_width")
    found["variant"] = "lp" if "prior" in nets else "fp" if "posterior" in nets else "det"
    try:
        return SVGConfig(**found)
    except ValueError as error:
        raise Refusal(f"has settings that no model can have: {error}") from error
