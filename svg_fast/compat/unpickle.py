"""Reads the pickle of a published checkpoint without running or importing anything that it names.

A pickle is a program. Here `pickletools` decodes its instructions, and a machine that knows only those of data carries
them out: names on an allow-list become inert objects, everything else is refused. No instruction makes more than its
argument and the values that it takes off the stack, so memory follows the pickle's length, which has a limit.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch

MAX_PICKLE = 4 * 2**20  # bytes; the structure of a published checkpoint takes less than 200 KiB
# What is beyond these is refused, so that time follows the length too: a pickle can refer again and again to one long
# tuple of arguments, or to one number of a million digits. A tensor's function takes 7 arguments at most.
_MOST_ARGUMENTS, _MOST_ELEMENTS = 8, 2**48


class Refusal(ValueError):  # noqa: N818 (part of a sentence, not an error to catch)
    """What is wrong with a file, as the rest of a sentence that begins with its name."""


def _refused(verb: str, name: str) -> Refusal:
    return Refusal(f"{verb} {name}, which a checkpoint has no use for: refused, nothing was run")


@dataclass(frozen=True)
class Named:
    """A class or function of the allow-list: nothing but its name."""

    name: str


@dataclass(eq=False)
class Holder:
    """An object of the allow-list's class `name`: nothing but its attributes."""

    name: str
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Storage:
    """`length` elements, from `start` on, of the `numel` that the file keeps under `key`."""

    dtype: torch.dtype
    key: str
    numel: int
    start: int
    length: int


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor that has not been read: its place in a storage, all in elements, and not yet checked."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def check(self) -> None:
        """Whether the tensor lies in its storage and has no more elements than that; Refusal if not."""
        size, stride, length = self.size, self.stride, self.storage.length
        numbers = (self.offset, *size, *stride)
        # small numbers first: products of what a pickle may hold could take for ever
        if len(size) == len(stride) <= 8 and all(type(n) is int and 0 <= n <= length for n in numbers):
            last = self.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
            if 0 < math.prod(size) <= length and last < length:
                return
        raise Refusal("has a tensor that does not lie in its storage")


def _tensor(storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> StoredTensor:
    if type(storage) is not Storage or type(size) is not tuple or type(stride) is not tuple:
        raise Refusal("has a tensor without a storage, a size or a stride")
    return StoredTensor(storage, offset, size, stride)


def _same(value: Any = None, *_: Any) -> Any:
    return value


def _dictionary(pairs: Any = ()) -> dict[str, Any]:
    """An OrderedDict: Python 2 writes its items here, Python 3 one by one afterwards."""
    found = dict([_entry(key, value) for key, value in pairs])
    if pairs:
        pairs.clear()  # a pickle could have a million dictionaries made of one long list
    return found


def _entry(key: Any, value: Any) -> tuple[str, Any]:
    # hashing a tuple of tuples of tuples ... takes exponential time
    if type(key) is not str:
        raise Refusal("has a dictionary with keys that are not strings")
    return key, value


_NETWORKS = {
    **{f"models.dcgan_{size}": ("encoder", "decoder", "dcgan_conv", "dcgan_upconv") for size in (64, 128)},
    **{f"models.vgg_{size}": ("encoder", "decoder", "vgg_layer") for size in (64, 128)},
    "models.lstm": ("lstm", "gaussian_lstm"),
    "torch.nn.modules.activation": ("LeakyReLU", "Sigmoid", "Tanh"),
    "torch.nn.modules.batchnorm": ("BatchNorm2d",),
    "torch.nn.modules.container": ("ModuleList", "Sequential"),
    "torch.nn.modules.conv": ("Conv2d", "ConvTranspose2d"),
    "torch.nn.modules.linear": ("Linear",),
    "torch.nn.modules.pooling": ("MaxPool2d",),
    "torch.nn.modules.rnn": ("LSTMCell",),
    "torch.nn.modules.upsampling": ("Upsample", "UpsamplingNearest2d"),
}
CLASSES = frozenset({f"{module}.{name}" for module, names in _NETWORKS.items() for name in names})
NAMESPACE = "argparse.Namespace"
# What `opt.optimizer` may be; nothing is made of them.
OPTIMIZERS = {f"torch.optim.{name.lower()}.{name}": name.lower() for name in ("Adam", "AdamW", "RMSprop", "SGD")}

_DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
_STORAGES = {f"{module}.{name}Storage": t for module in ("torch", "torch.cuda") for name, t in _DTYPES.items()}

# The functions that a pickle may call, and what happens instead.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _same,
    "torch.nn.parameter.Parameter": _same,  # of torch 0.3 and 0.4
    "torch.autograd.variable.Variable": _same,  # of torch 0.3
    "torch.nn.backends.thnn._get_thnn_function_backend": lambda: None,  # an attribute of every module until torch 1.3
    "torch.Size": _same,
    "collections.OrderedDict": _dictionary,
    "builtins.set": _same,
}
_ALLOWED = CLASSES | {NAMESPACE} | OPTIMIZERS.keys() | _STORAGES.keys() | _FUNCTIONS.keys()
# Scripts that train with `svg_fast.compat.models` save whole modules too.
_OURS = {
    "svg_fast.compat.models.lstm": "models.lstm.lstm",
    "svg_fast.compat.models.gaussian_lstm": "models.lstm.gaussian_lstm",
    "svg_fast.compat.models.dcgan_conv": "models.dcgan_64.dcgan_conv",
    "svg_fast.compat.models.dcgan_upconv": "models.dcgan_64.dcgan_upconv",
    "svg_fast.compat.models.vgg_layer": "models.vgg_64.vgg_layer",
    **{
        f"svg_fast.compat.models.{backbone}_{size}_{net}": f"models.{backbone}_{size}.{net}"
        for backbone in ("dcgan", "vgg")
        for size in (64, 128)
        for net in ("encoder", "decoder")
    },
}
_PYTHON_3_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}

# Instructions whose decoded argument is the value.
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}


class Unpickler:
    """One pickle's machine. `storages`: what each key of a storage was said to be, once `load` is through."""

    def __init__(self) -> None:
        self.storages: dict[str, tuple[torch.dtype, int]] = {}
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def load(self, stream: BinaryIO) -> Any:
        """The value of the pickle at the stream's position, which is left behind its end.

        Strings of Python 2 are read as Latin-1. Raises Refusal for what is not allowed, and any of the errors of
        damaged data: ArithmeticError, LookupError, TypeError, ValueError.
        """
        for instruction, argument, _ in pickletools.genops(stream):
            if instruction.name in _LITERALS:
                self._stack.append(argument)
            else:
                self._carry_out(instruction.name, argument)
        return self._stack.pop()

    def _carry_out(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "BINPUT" | "LONG_BINPUT":  # not PUT: its numbers can be any, and so be chosen to share a hash
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "MARK":
                self._marked.append(stack)
                self._stack = []
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST" | "EMPTY_SET":  # nobody asks whether a set is one
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE" | "LIST" | "FROZENSET" | "DICT":
                self._make(name, self._since_mark())
            case "APPEND" | "SETITEM":
                self._extend([stack.pop() for _ in range(1 + (name == "SETITEM"))][::-1])
            case "APPENDS" | "ADDITEMS" | "SETITEMS":
                self._extend(self._since_mark())
            case "GLOBAL" | "STACK_GLOBAL" | "INST":
                self._name(name, argument)
            case "REDUCE" | "NEWOBJ":
                self._call(name)
            case "BUILD":
                self._set_state(stack.pop())
            case "BINPERSID":
                stack.append(self._persistent(*stack.pop()))
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                raise _refused("uses the pickle instruction", name)

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _make(self, name: str, items: list[Any]) -> None:
        if name == "DICT":
            self._stack.append({})
            self._extend(items)
        else:
            self._stack.append(tuple(items) if name == "TUPLE" else items)

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target += items
        elif type(target) is dict:
            target.update(_entry(*pair) for pair in zip(items[::2], items[1::2], strict=True))
        else:
            raise Refusal("puts items into what is neither a list nor a dictionary")

    def _name(self, instruction: str, argument: Any) -> None:
        module, name = argument.split(" ", 1) if argument else (self._stack.pop(-2), self._stack.pop())
        if type(module) is not str or type(name) is not str:
            raise Refusal("names what is not a name")
        full = f"{_PYTHON_3_NAMES.get(module, module)}.{name}"
        full = _OURS.get(full, full)
        if full not in _ALLOWED:
            raise _refused("names", ascii(full)[1:-1][:200])
        if instruction == "INST":
            raise _refused("uses the pickle instruction", instruction)
        self._stack.append(Named(full))

    def _call(self, instruction: str) -> None:
        arguments, callee = self._stack.pop(), self._stack.pop()
        if type(callee) is not Named or type(arguments) is not tuple:
            raise Refusal("calls what is not a function")
        if len(arguments) > _MOST_ARGUMENTS:
            raise Refusal(f"calls a function with {len(arguments)} arguments")
        if instruction == "REDUCE" and callee.name in _FUNCTIONS:
            self._stack.append(_FUNCTIONS[callee.name](*arguments))
        elif instruction == "NEWOBJ" and not arguments and callee.name in CLASSES | {NAMESPACE}:
            self._stack.append(Holder(callee.name))
        else:
            raise _refused("calls", callee.name)

    def _set_state(self, state: Any) -> None:
        target = self._stack[-1]
        if type(target) is Holder and type(state) is dict:
            target.state = state  # not a copy: many objects may be given one long dictionary
        elif type(target) not in (StoredTensor, dict):  # nobody reads a Variable's flags, an OrderedDict's attributes
            raise Refusal("gives attributes to what is not a module")

    def _persistent(self, kind: Any, *data: Any) -> Any:
        """A class that carries its source, of which the name alone is kept; or a storage."""
        if kind == "module" and len(data) == 3 and type(data[0]) is Named:
            return data[0]
        if kind != "storage" or len(data) not in (4, 5):  # the zip format has no view
            raise Refusal("refers to something outside its pickle that is not a storage")
        cls, key, _, numel, *view = data
        dtype = _STORAGES.get(cls.name) if type(cls) is Named else None
        if dtype is None or type(key) is not str or type(numel) is not int or not 0 <= numel <= _MOST_ELEMENTS:
            raise Refusal("has a storage without a type, a key or a size")
        if self.storages.setdefault(key, (dtype, numel)) != (dtype, numel):
            raise Refusal(f"says two things of its storage {ascii(key)[:50]}")
        start, length = (0, numel) if not view or view[0] is None else view[0][1:]
        if type(start) is not int or type(length) is not int or not 0 <= start <= start + length <= numel:
            raise Refusal(f"has a view that does not lie in its storage {ascii(key)[:50]}")
        return Storage(dtype, key, numel, start, length)
