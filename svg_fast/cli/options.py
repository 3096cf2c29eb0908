"""Options made of settings dataclasses, and those that several commands share."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click
import torch

from ..models import SVGConfig
from ..training import TrainConfig
from ..training.setup import prepare_device

Command = TypeVar("Command", bound=Callable[..., Any])
Settings = TypeVar("Settings", SVGConfig, TrainConfig)

PATH = click.Path(path_type=Path)


def options_of(cls: type[Any]) -> Callable[[Command], Command]:
    """One option for each field of a settings dataclass; not given means the preset's value."""
    hints = get_type_hints(cls)

    def decorate(command: Command) -> Command:
        for field in reversed(fields(cls)):
            command = _option(field, hints[field.name])(command)
        return command

    return decorate


def _option(field: Field[Any], hint: Any) -> Callable[[Command], Command]:
    name = "--" + field.name.replace("_", "-")
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (part for part in get_args(hint) if part is not NoneType)
    if hint is bool:
        return click.option(f"{name}/--no-{name[2:]}", field.name, default=None)
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        hint = click.Choice(choices)
    return click.option(name, field.name, type=click.Path(path_type=Path) if hint is Path else hint, default=None)


def override(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """`settings` with the options that were given."""
    names = {field.name for field in fields(settings)}
    return replace(settings, **{name: value for name, value in given.items() if name in names and value is not None})


def settings_help(*classes: type[Any]) -> str:
    """The settings' own documentation, kept as it is laid out (click's \\b)."""
    parts = (inspect.cleandoc(cls.__doc__ or "").partition("\n\nRaises")[0] for cls in classes)
    return "\n\n".join("\b\n" + paragraph for part in parts for paragraph in part.split("\n\n"))


class Bytes(click.ParamType[int]):
    """A number of bytes: 800000000, 800M, 1.5G (powers of 1000)."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([kMG]?)", value)
        if found is None:
            self.fail(f"{value!r} is not a number of bytes such as 800M or 1.5G", param, ctx)
        return int(float(found[1]) * {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}[found[2]])


def _together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


device_options = _together(
    click.option("--device", help="cpu, cuda, ... [default: a GPU where there is one]"),
    click.option("--threads", type=click.IntRange(min=0), default=0, help="Of the CPU; 0 leaves torch's choice."),
)
data_options = _together(
    click.option("--data-root", type=PATH, help="Folder of the data [default: that of the training run]."),
    click.option("--clips", "clips_file", type=PATH, help="Test clips: .npy of uint8 (N, T, H, W, C) or (N, T, H, W)."),
)
sampling_options = _together(
    click.option("--statistics", type=click.Choice(["batch", "running"]), help="BatchNorm's [default: the model's]."),
    click.option("--temperature", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Of the prior."),
    click.option("--seed", type=click.IntRange(min=0, max=2**62), default=1, show_default=True, help="Of all noise."),
    click.option("--memory-limit", type=Bytes(), help="For a chunk of samples, such as 800M [default: the device's]."),
)


def chosen_device(device: str | None, threads: int) -> torch.device:
    """The device that was asked for, tried; ValueError if it cannot be used."""
    return prepare_device(TrainConfig(device=device, threads=threads))


def model_names(kinds: Sequence[str], given: Sequence[str]) -> list[str]:
    """A name for each model: those given, or their kinds where these tell them apart; ValueError where names do not."""
    if given and len(given) != len(kinds):
        raise ValueError(f"--name must be given once for each of the {len(kinds)} models, got {len(given)}")
    names = list(given or kinds)
    if len({file_name(name) for name in names}) < len(names):
        raise ValueError(f"models must have names of their own (--name for each), got {', '.join(names)}")
    return names


def file_name(name: str) -> str:
    """A model's name as that of a file, without a suffix."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.").lower() or "model"
