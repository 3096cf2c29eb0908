"""svg-fast train, sample, evaluate, report, figure, convert, data, runs, bench; or `python -m svg_fast train`, ..."""

from __future__ import annotations

import logging
import sys

import click

from .. import __version__
from .bench import bench_group
from .data import data_group
from .errors import EXPECTED, message
from .evaluate import evaluate_command, report_command
from .figure import figure_group
from .inspect import inspect_command
from .runs import runs_command
from .sample import convert_command, sample_command
from .train import train_command


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
    runs_command,
    bench_group,
):
    cli.add_command(command)
data_group.add_command(inspect_command)


def run() -> None:
    """Run the command line; an error that a user can mend is one sentence, not a stack trace."""
    try:
        cli.main(prog_name="svg-fast")
    except EXPECTED as error:
        click.echo(message(error), err=True)
        sys.exit(1)
