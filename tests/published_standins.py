"""The published modules `models.*`, written from their description, and a writer of files as torch 0.3 made them.

`installed(...)` puts them under their names into sys.modules; `checkpoint(...)` a whole checkpoint's dict.
"""

from __future__ import annotations

import argparse
import copyreg
import pickle
import struct
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, BinaryIO, ClassVar

import pytest
import torch
from torch import Tensor, nn


def _layer(name: str, module: str, kernel: int, stride: int, transposed: bool = False) -> type[nn.Module]:
    """A block's class."""

    class Layer(nn.Module):
        def __init__(self, n_in: int, n_out: int) -> None:
            super().__init__()
            make = nn.ConvTranspose2d if transposed else nn.Conv2d
            self.main = nn.Sequential(
                make(n_in, n_out, kernel, stride, 1), nn.BatchNorm2d(n_out), nn.LeakyReLU(0.2, inplace=True)
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.main(x)

    return named(Layer, name, module)


def named(cls: type[nn.Module], name: str, module: str) -> type[nn.Module]:
    cls.__name__ = cls.__qualname__ = name
    cls.__module__ = module
    return cls


def _frame_networks(backbone: str, size: int, nf: int, module: str) -> dict[str, type[nn.Module]]:
    a, b, c, d = nf, 2 * nf, 4 * nf, 8 * nf
    big = size == 128
    depth = 5 if big else 4
    vgg = backbone == "vgg"
    if vgg:
        down = up = _layer("vgg_layer", module, 3, 1)
        layers = {"vgg_layer": down}
    else:
        down, up = _layer("dcgan_conv", module, 4, 2), _layer("dcgan_upconv", module, 4, 2, transposed=True)
        layers = {"dcgan_conv": down, "dcgan_upconv": up}

    def stack(layer: type[nn.Module], *widths: int) -> nn.Sequential:
        return nn.Sequential(*(layer(n_in, n_out) for n_in, n_out in pairwise(widths)))

    class Encoder(nn.Module):
        def __init__(self, dim: int, nc: int = 1) -> None:
            super().__init__()
            self.dim = dim
            if vgg:
                widths = [(nc, a, a), (a, b, b), (b, c, c, c), (c, d, d, d), (d, d, d, d)]
                stages: list[nn.Module] = [stack(down, *widths[k]) for k in range(depth)]
            else:
                stages = [down(n_in, n_out) for n_in, n_out in pairwise([nc, a, b, c, d, d][: depth + 1])]
            head = nn.Sequential(nn.Conv2d(d, dim, 4, 1, 0), nn.BatchNorm2d(dim), nn.Tanh())
            for k, stage in enumerate([*stages, head], start=1):
                setattr(self, f"c{k}", stage)
            if vgg:
                self.mp = nn.MaxPool2d(kernel_size=2, stride=2, padding=0)

        def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
            skips: list[Tensor] = []
            for k in range(1, depth + 2):
                x = getattr(self, f"c{k}")(self.mp(x) if vgg and k > 1 else x)
                skips.append(x)
            return skips.pop().view(-1, self.dim), skips

    class Decoder(nn.Module):
        def __init__(self, dim: int, nc: int = 1) -> None:
            super().__init__()
            self.dim = dim
            self.upc1 = nn.Sequential(
                nn.ConvTranspose2d(dim, d, 4, 1, 0), nn.BatchNorm2d(d), nn.LeakyReLU(0.2, inplace=True)
            )
            if vgg:
                widths = [(2 * d, d, d, d)] * big + [(2 * d, d, d, c), (2 * c, c, c, b), (2 * b, b, a)]
                levels: list[nn.Module] = [stack(up, *w) for w in widths]
                last: list[nn.Module] = [up(2 * a, a), nn.ConvTranspose2d(a, nc, 3, 1, 1)]
            else:
                outs = [d] * big + [c, b, a]
                levels = [up(2 * n_in, n_out) for n_in, n_out in pairwise([d, *outs])]
                last = [nn.ConvTranspose2d(2 * a, nc, 4, 2, 1)]
            for k, level in enumerate([*levels, nn.Sequential(*last, nn.Sigmoid())], start=2):
                setattr(self, f"upc{k}", level)
            if vgg:
                self.up = nn.UpsamplingNearest2d(scale_factor=2)

        def forward(self, inputs: Any) -> Tensor:
            vec, skips = inputs
            x = self.upc1(vec.view(-1, self.dim, 1, 1))
            for k in range(depth):
                x = getattr(self, f"upc{k + 2}")(torch.cat([self.up(x) if vgg else x, skips[depth - 1 - k]], 1))
            return x

    return {**layers, "encoder": named(Encoder, "encoder", module), "decoder": named(Decoder, "decoder", module)}


class _Recurrent(nn.Module):
    hidden: list[tuple[Tensor, Tensor]]

    def __init__(self, input_size: int, output_size: int, hidden_size: int, n_layers: int, batch_size: int) -> None:
        super().__init__()
        self.input_size, self.output_size, self.hidden_size = input_size, output_size, hidden_size
        self.batch_size, self.n_layers = batch_size, n_layers
        self.embed = nn.Linear(input_size, hidden_size)
        self.lstm = nn.ModuleList([nn.LSTMCell(hidden_size, hidden_size) for _ in range(n_layers)])

    def init_hidden(self) -> list[tuple[Tensor, Tensor]]:
        shape, like = (self.batch_size, self.hidden_size), self.embed.weight
        return [(like.new_zeros(shape), like.new_zeros(shape)) for _ in range(self.n_layers)]

    def run(self, x: Tensor) -> Tensor:
        x = self.embed(x.view(-1, self.input_size))
        for k, cell in enumerate(self.lstm):
            self.hidden[k] = cell(x, self.hidden[k])
            x = self.hidden[k][0]
        return x


class Lstm(_Recurrent):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.output = nn.Sequential(nn.Linear(self.hidden_size, self.output_size), nn.Tanh())
        self.hidden = self.init_hidden()

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.run(x))


class GaussianLstm(_Recurrent):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.mu_net = nn.Linear(self.hidden_size, self.output_size)
        self.logvar_net = nn.Linear(self.hidden_size, self.output_size)
        self.hidden = self.init_hidden()

    def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
        return mu + torch.empty_like(logvar).normal_() * (logvar / 2).exp()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.run(x)
        mu, logvar = self.mu_net(y), self.logvar_net(y)
        return self.reparameterize(mu, logvar), mu, logvar


named(Lstm, "lstm", "models.lstm")
named(GaussianLstm, "gaussian_lstm", "models.lstm")


def modules(nf: int) -> dict[str, ModuleType]:
    """`models` and its submodules with networks of base width nf (64 as published)."""
    found = {"models": ModuleType("models"), "models.lstm": ModuleType("models.lstm")}
    found["models.lstm"].__dict__.update(lstm=Lstm, gaussian_lstm=GaussianLstm)
    for backbone in ("dcgan", "vgg"):
        for size in (64, 128):
            module = f"models.{backbone}_{size}"
            found[module] = ModuleType(module)
            found[module].__dict__.update(_frame_networks(backbone, size, nf, module))
    for name, module_ in found.items():
        if name != "models":
            setattr(found["models"], name.removeprefix("models."), module_)
    return found


@contextmanager
def installed(monkeypatch: pytest.MonkeyPatch, nf: int) -> Iterator[None]:
    """`models.*` can be imported; torch uses one thread, since these networks have not work for more."""
    for name, module in modules(nf).items():
        monkeypatch.setitem(sys.modules, name, module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def options(**given: Any) -> argparse.Namespace:
    """The training scripts' options, small."""
    nets = {"model": "dcgan", "image_width": 64, "channels": 1, "g_dim": 6, "z_dim": 3, "rnn_size": 5, "batch_size": 2}
    layers = {"predictor_rnn_layers": 2, "posterior_rnn_layers": 1, "prior_rnn_layers": 1}
    bound = {"n_past": 3, "n_future": 4, "max_step": 7, "beta": 0.001, "last_frame_skip": False}
    run = {"lr": 0.002, "optimizer": torch.optim.Adam, "dataset": "smmnist", "num_digits": 2, "data_root": "data"}
    return argparse.Namespace(**{**nets, **layers, **bound, **run, **given})


def checkpoint(variant: str = "lp", nf: int = 2, dtype: torch.dtype = torch.float64, **given: Any) -> dict[str, Any]:
    """What the scripts of a variant save; parameters and running statistics are random."""
    opt = options(**given)
    published = sys.modules[f"models.{opt.model}_{opt.image_width}"]
    z_dim = 0 if variant == "det" else opt.z_dim
    nets: dict[str, nn.Module] = {
        "encoder": published.encoder(opt.g_dim, opt.channels),
        "decoder": published.decoder(opt.g_dim, opt.channels),
        "frame_predictor": Lstm(opt.g_dim + z_dim, opt.g_dim, opt.rnn_size, opt.predictor_rnn_layers, opt.batch_size),
    }
    for name in {"lp": ("posterior", "prior"), "fp": ("posterior",), "det": ()}[variant]:
        layers = getattr(opt, f"{name}_rnn_layers")
        nets[name] = GaussianLstm(opt.g_dim, opt.z_dim, opt.rnn_size, layers, opt.batch_size)
    for net in nets.values():
        for key, buffer in net.named_buffers():
            if "running" in key:
                buffer.add_(torch.rand_like(buffer))
        net.to(dtype).eval()
    return {**nets, "opt": opt}


# What torch 0.3 wrote and no torch of today has: the functions' names alone matter.
def _get_thnn_function_backend() -> None: ...


def _variable(data: Tensor) -> None: ...


_get_thnn_function_backend.__module__ = "torch.nn.backends.thnn"
_variable.__module__, _variable.__name__ = "torch.autograd.variable", "Variable"


@dataclass(eq=False)
class _As2018:
    """An object that is pickled by the call of a function, or a tensor's storage."""

    function: Any
    arguments: tuple[Any, ...] = ()
    state: Any = None


_PythonPickler: Any = pickle._Pickler  # typeshed does not know its methods


class _Pickler2018(_PythonPickler):  # type: ignore[misc]
    """Python 2 and torch 0.3 on a GPU: byte strings, classes with their source, Variables, no newer attributes."""

    dispatch: ClassVar[dict[type, Any]] = dict(_PythonPickler.dispatch)

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, 2)
        self.classes: set[type] = set()
        self.stored: dict[str, Tensor] = {}

    def save_python2_str(self, text: str) -> None:
        data = text.encode("latin-1")
        short = len(data) < 256
        self.write((b"U" + struct.pack("<B", len(data)) if short else b"T" + struct.pack("<i", len(data))) + data)
        self.memoize(text)

    dispatch[str] = save_python2_str

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, type) and issubclass(obj, nn.Module) and obj not in self.classes:
            self.classes.add(obj)
            return ("module", obj, f"/home/somebody/{obj.__module__}.py", f"class {obj.__name__}(nn.Module): ...")
        if isinstance(obj, _As2018) and obj.function is None:
            whole = obj.arguments[0].detach().flatten()
            key, view = str(len(self.stored)), None
            if len(self.stored) % 2:  # every second tensor is a part of a longer storage
                view = (f"view of {key}", 3, len(whole))
                whole = torch.cat([whole.new_full((3,), 9), whole, whole.new_full((1,), 9)])
            self.stored[key] = whole
            kind = {torch.float32: torch.FloatStorage, torch.float64: torch.DoubleStorage}[whole.dtype]
            return ("storage", kind, key, "cuda:0", len(whole), view)
        return None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, nn.Module):
            kept = ("_parameters", "_buffers", "_backward_hooks", "_forward_hooks", "_modules")
            state = {key: value for key, value in vars(obj).items() if key in kept or not key.startswith("_")}
            state["_backend"] = _As2018(_get_thnn_function_backend)
            buffers = {key: value for key, value in obj._buffers.items() if key != "num_batches_tracked"}
            state["_buffers"] = OrderedDict(buffers)
            if "hidden" in state:
                flags = (True, False, OrderedDict[str, Any]())
                state["hidden"] = [tuple(_As2018(_variable, (x,), flags) for x in pair) for pair in state["hidden"]]
            return copyreg.__newobj__, (type(obj),), state  # type: ignore[attr-defined]
        if isinstance(obj, _As2018):
            return obj.function, obj.arguments, obj.state
        if isinstance(obj, nn.Parameter):
            return nn.Parameter, (obj.data,), (True, False, OrderedDict[str, Any]())
        if isinstance(obj, Tensor):
            return torch._utils._rebuild_tensor, (_As2018(None, (obj,)), 0, tuple(obj.shape), obj.stride())
        if isinstance(obj, OrderedDict):
            return OrderedDict, ([[key, value] for key, value in obj.items()],)
        return NotImplemented

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module = "torch" if obj.__name__.endswith("Storage") else obj.__module__
        self.write(f"c{module}\n{obj.__name__}\n".encode())
        self.memoize(obj)

    dispatch[FunctionType] = save_global


def write_2018(tree: Any, path: Path) -> None:
    """A file as torch 0.3 wrote it under Python 2, its tensors on a GPU."""
    with path.open("wb") as file:
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
        for value in (0x1950A86A20F9469CFC6C, 1001, system):
            pickle.dump(value, file, 2)
        pickler = _Pickler2018(file)
        pickler.dump(tree)
        keys = sorted(pickler.stored)
        pickle.dump(keys, file, 2)
        for key in keys:
            whole = pickler.stored[key]
            file.write(struct.pack("<q", len(whole)) + whole.numpy().tobytes())
