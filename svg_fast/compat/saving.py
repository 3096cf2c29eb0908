"""Writes a model as a published checkpoint, for scripts that open one: whole modules of the published classes.

The classes are made here with the names and attributes alone; whoever unpickles the file has their code.
"""

from __future__ import annotations

import functools
import pickle
from argparse import Namespace
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ..files import replacing
from ..models import SVG, SVGConfig
from ..models.frame_network import NEGATIVE_SLOPE, ConvNorm, FrameDecoder, FrameEncoder
from ..models.pretrained import filled
from ..models.recurrent import LSTM, RecurrentNet

# The training scripts' options and their defaults, beside those that the model determines.
_OPTIONS: dict[str, Any] = {
    "lr": 0.002,
    "beta1": 0.9,
    "batch_size": 100,
    "log_dir": "logs/lp",
    "model_dir": "",
    "name": "",
    "data_root": "data",
    "optimizer": torch.optim.Adam,
    "niter": 300,
    "seed": 1,
    "epoch_size": 600,
    "dataset": "smmnist",
    "n_eval": 30,
    "data_threads": 5,
    "num_digits": 2,
}
# Options that are also settings of a model.
_SHARED = (
    *("channels", "g_dim", "z_dim", "rnn_size", "predictor_rnn_layers", "posterior_rnn_layers", "prior_rnn_layers"),
    *("n_past", "n_future", "beta", "last_frame_skip"),
)


def save_published(model: SVG, path: str | Path, options: Mapping[str, Any] | None = None) -> None:
    """Write `model` to `path` as the published scripts do: a dict of whole modules, and `opt`, an argparse.Namespace.

    The file appears whole or not at all, its tensors on the CPU, its modules in eval mode. `torch.load` opens it with
    weights_only=False where `models.dcgan_64` and the others can be imported. options: what the scripts were or would
    have been told, beside what the model determines, by their names; what is not given has their default.

    Raises ValueError for a model that they cannot express (skip="paper"), for options that are not plain values
    (numbers, strings, None), and for options that contradict the model.
    """
    config = model.config
    if config.skip == "paper" and not config.last_frame_skip:
        raise ValueError('the published scripts know no skip="paper": a model of theirs takes skip="published"')
    opt = Namespace(**_options(config, options or {}))
    # a copy on the CPU, without whatever hooks a module may have
    model = filled(SVG, config, {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()})
    modules: dict[str, nn.Module] = {
        "encoder": _encoder(model.encoder, f"models.{config.backbone}_{config.image_size}", config.g_dim),
        "decoder": _decoder(model.decoder, f"models.{config.backbone}_{config.image_size}", config.g_dim),
    }
    for name in ("frame_predictor", "posterior", "prior"):
        if hasattr(model, name):
            modules[name] = _recurrent(getattr(model, name), opt.batch_size)
    with replacing(path) as part:
        tree = {**{name: module.eval() for name, module in modules.items()}, "opt": opt}
        torch.save(tree, part, pickle_module=SimpleNamespace(__name__=__name__, Pickler=_Pickler))


def _options(config: SVGConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    determined = {"model": config.backbone, "image_width": config.image_size}
    determined |= {name: getattr(config, name) for name in _SHARED}
    for name, value in given.items():
        if name in determined and value != determined[name]:
            raise ValueError(f"the option {name} must be the model's, {determined[name]!r}, got {value!r}")
    told = {"max_step": config.n_past + config.n_future, **given, **determined}
    for name, value in told.items():
        # not those of NumPy, though float64 is a float: a pickle names the function that makes them
        if not (value is None or type(value) in (bool, int, float, str)):
            raise ValueError(f"options must be Python's numbers, strings or None, got {value!r} for {name}")
    return _OPTIONS | told


@functools.cache
def _class(name: str) -> type[nn.Module]:
    """An empty class that says it is `name`."""
    module, _, cls = name.rpartition(".")
    return type(cls, (nn.Module,), {"__module__": module, "__qualname__": cls})


def _make(name: str, children: Mapping[str, nn.Module], **attributes: Any) -> nn.Module:
    module = _class(name)()
    for key, value in chain(attributes.items(), children.items()):
        setattr(module, key, value)
    return module


_PythonPickler: Any = pickle._Pickler  # typeshed does not know its methods


class _Pickler(_PythonPickler):  # type: ignore[misc]
    """Writes the classes of `_class` by name. (The pickler in C would import the name first, and there is nothing.)"""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if isinstance(obj, type) and obj.__module__.startswith("models.") and issubclass(obj, nn.Module):
            self.write(pickle.GLOBAL + f"{obj.__module__}\n{obj.__name__}\n".encode())
            self.memoize(obj)
        else:
            super().save_global(obj, name)


def _leaky_relu() -> nn.LeakyReLU:
    return nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)


def _layer(block: nn.Module, module: str) -> nn.Module:
    """A block as the published layer of its kind, with its activation; anything else as it is."""
    if not isinstance(block, ConvNorm):
        return block
    dcgan = "dcgan_upconv" if isinstance(block.conv, nn.ConvTranspose2d) else "dcgan_conv"
    kind = "vgg_layer" if module.startswith("models.vgg") else dcgan
    return _make(f"{module}.{kind}", {"main": nn.Sequential(block.conv, block.norm, _leaky_relu())})


def _stage(stage: nn.Module, module: str, *end: nn.Module) -> nn.Module:
    """A stage, or a level, with its activations."""
    if isinstance(stage, nn.Sequential):
        return nn.Sequential(*(_layer(block, module) for block in stage), *end)
    return _layer(stage, module)


def _encoder(encoder: FrameEncoder, module: str, dim: int) -> nn.Module:
    *stages, (name, head) = encoder.named_children()
    children = {key: _stage(stage, module) for key, stage in stages} | {name: _stage(head, module, nn.Tanh())}
    if module.startswith("models.vgg"):
        children["mp"] = nn.MaxPool2d(kernel_size=2, stride=2, padding=0)
    return _make(f"{module}.encoder", children, dim=dim)


def _decoder(decoder: FrameDecoder, module: str, dim: int) -> nn.Module:
    (first, opening), *levels, (last, closing) = decoder.named_children()
    children = {first: _stage(opening, module, _leaky_relu())}
    children |= {key: _stage(level, module) for key, level in levels}
    children[last] = _stage(closing, module, nn.Sigmoid())
    if module.startswith("models.vgg"):
        children["up"] = nn.UpsamplingNearest2d(scale_factor=2)
    return _make(f"{module}.decoder", children, dim=dim)


def _recurrent(net: RecurrentNet, batch_size: int) -> nn.Module:
    predictor = isinstance(net, LSTM)
    zeros = net.embed.weight.new_zeros(batch_size, net.hidden_size)
    return _make(
        "models.lstm.lstm" if predictor else "models.lstm.gaussian_lstm",
        dict(net.named_children()),
        input_size=net.embed.in_features,
        output_size=net.heads()[0].out_features,
        hidden_size=net.hidden_size,
        batch_size=batch_size,
        n_layers=len(net.lstm),
        hidden=[(zeros, zeros.clone()) for _ in net.lstm],
    )
