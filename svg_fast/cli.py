"""The command line: svg-fast train | figure | bench (also `python -m svg_fast`)."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import Field, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import click

from . import __version__, benchmarks
from .benchmarks import Metric
from .models import SVGConfig, preset
from .training import Interrupted, NonFiniteLoss, TrainConfig, train, training_preset

Command = TypeVar("Command", bound=Callable[..., Any])
Settings = TypeVar("Settings", SVGConfig, TrainConfig)

# What a user can mend; anything else is a defect, and shows its stack trace.
_EXPECTED = (ValueError, OSError, ImportError, NonFiniteLoss)


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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Stochastic Video Generation, fast and exact."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")


def _settings_help() -> str:
    """The settings' own documentation, kept as it is laid out (click's \\b)."""
    parts = (inspect.cleandoc(cls.__doc__ or "").partition("\n\nRaises")[0] for cls in (TrainConfig, SVGConfig))
    return "\n\n".join("\b\n" + paragraph for part in parts for paragraph in part.split("\n\n"))


@cli.command("train", epilog=_settings_help())
@click.argument("name", metavar="PRESET")
@click.option("--log-dir", type=click.Path(path_type=Path), help="Folder of the run [default: runs/PRESET].")
@click.option("--resume", is_flag=True, help="Continue the run in --log-dir from its last checkpoint, if it has one.")
@options_of(TrainConfig)
@options_of(SVGConfig)
def train_command(name: str, log_dir: Path | None, resume: bool, **given: Any) -> None:
    """Train a model with the paper's settings for PRESET: smmnist|kth|bair-lp|fp|det, or smmnist-small.

    Options change single settings, explained below under their names.
    """
    config, training = override(preset(name), given), override(training_preset(name), given)
    try:
        strips = train(config, training, log_dir or Path("runs") / name, resume)
    except Interrupted as stop:
        click.echo(str(stop), err=True)
        sys.exit(128 + stop.signum)
    click.echo(f"samples: {strips}")


@cli.command("figure")
@click.argument("name", type=click.Choice(["velocity"]))
@click.option(
    "--out", type=click.Path(path_type=Path), help="The PNG [default: NAME.png]; its data go beside it as CSV."
)
def figure_command(name: str, out: Path | None) -> None:
    """Draw a figure of the paper: velocity is figure 3, the non-uniform velocities of SM-MNIST."""
    from .evaluation.figures import velocity_figure

    out = out or Path(f"{name}.png")
    velocity_figure(out)
    click.echo(out)


@cli.group("bench")
def bench_group() -> None:
    """What `make bench` measured: compare two runs, or draw one."""


@bench_group.command("compare")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--threshold", type=click.FloatRange(min=1), default=1.1, show_default=True, help="Slower by how much.")
@click.option(
    "--metric",
    type=click.Choice(get_args(Metric)),
    default="times_as_fast",
    show_default=True,
    help="Ratio to each peer, or seconds: these compare on one machine only.",
)
def compare_command(old: Path, new: Path, threshold: float, metric: Metric) -> None:
    """How every case changed from OLD to NEW, JSON files of the benchmarks.

    Exit status 1 where a case became slower by more than the threshold.
    """
    comparison = benchmarks.compare(benchmarks.load(old), benchmarks.load(new), metric)
    for line in comparison.lines(threshold):
        click.echo(line)
    slower = comparison.slower(threshold)
    if slower:
        click.echo(f"{len(slower)} of {len(comparison.changes)} slower by more than {threshold:g} times", err=True)
        sys.exit(1)


@bench_group.command("plot")
@click.argument("result", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The PNG.")
def plot_command(result: Path, out: Path) -> None:
    """Draw RESULT, a JSON file of the benchmarks: how many times as fast each case is as its peers."""
    from .evaluation.benchmark_figure import benchmark_figure

    benchmark_figure(benchmarks.load(result), out)
    click.echo(out)


def run() -> None:
    """Run the command line; an error that a user can mend is one sentence, not a stack trace."""
    try:
        cli.main(prog_name="svg-fast")
    except _EXPECTED as error:
        message = (
            str(error)
            if not isinstance(error, OSError) or not error.filename
            else f"{error.filename}: {error.strerror}"
        )
        click.echo(f"Error: {message}", err=True)
        sys.exit(1)
