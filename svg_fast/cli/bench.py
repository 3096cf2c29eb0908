"""svg-fast bench compare | plot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import click

from .. import benchmarks
from ..benchmarks import Metric
from .options import PATH


@click.group("bench")
def bench_group() -> None:
    """What `make bench` measured: compare two runs, or draw one."""


@bench_group.command("compare")
@click.argument("old", type=PATH)
@click.argument("new", type=PATH)
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
@click.argument("result", type=PATH)
@click.option("--out", type=PATH, required=True, help="The PNG.")
def plot_command(result: Path, out: Path) -> None:
    """Draw RESULT, a JSON file of the benchmarks: how many times as fast each case is as its peers."""
    from ..evaluation.benchmark_figure import benchmark_figure

    benchmark_figure(benchmarks.load(result), out)
    click.echo(out)
