"""The command line: svg-fast train, sample, evaluate, report, figure, convert, data, bench; or `python -m svg_fast`."""

from __future__ import annotations

import logging
import sys

import click

from .. import __version__
from ..training import NonFiniteLoss
from .bench import bench_group
from .data import data_group
from .evaluate import evaluate_command, report_command
from .figure import figure_group
from .inspect import inspect_command
from .sample import convert_command, sample_command
from .train import train_command

# What a user can mend; anything else is a defect, and shows its stack trace.
_EXPECTED = (ValueError, OSError, ImportError, NonFiniteLoss)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Stochastic Video Generation, fast and exact."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")


for command in (
    train_command,
    sample_command,
    evaluate_command,
    report_command,
    figure_group,
    convert_command,
    data_group,
    bench_group,
):
    cli.add_command(command)
data_group.add_command(inspect_command)


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
