"""svg-fast train."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from ..models import SVGConfig, preset
from ..training import Interrupted, TrainConfig, train, training_preset
from ..training.schedules import Optimisation
from .errors import leaving
from .options import PATH, options_of, override, settings_help


@click.command("train", epilog=settings_help(TrainConfig, Optimisation, SVGConfig))
@click.argument("name", metavar="PRESET")
@click.option("--log-dir", type=PATH, help="Folder of the run [default: runs/PRESET].")
@click.option("--resume", is_flag=True, help="Continue the run in --log-dir from its last checkpoint, if it has one.")
@options_of(TrainConfig)
@options_of(SVGConfig)
def train_command(name: str, log_dir: Path | None, resume: bool, **given: Any) -> None:
    """Train a model with the paper's settings for PRESET: smmnist|kth|bair-lp|fp|det; or with those of a small one:
    smmnist-1digit-lp|fp|det|lp-nonuniform (docs/results.md), smmnist-small.

    Options change single settings, explained below under their names. With several GPUs or machines: torchrun
    --nproc-per-node N -m svg_fast train PRESET ... (docs/scale.md).
    """
    with leaving():
        leads = os.environ.get("RANK", "0") == "0"
        config, training = override(preset(name), given), override(training_preset(name), given)
        try:
            strips = train(config, training, log_dir or Path("runs") / name, resume, name)
        except Interrupted as stop:
            if leads:
                click.echo(str(stop), err=True)
            sys.exit(128 + stop.signum)
        if leads:
            click.echo(f"samples: {strips}")
