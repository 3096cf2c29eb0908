"""svg-fast figure velocity | trajectory | motion | prior | samples: each a PNG with the data behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from ..data.velocity import MOTIONS, Motion
from ..models.config import Statistics
from .options import PATH, Command, chosen_device, data_options, device_options, model_names

STATISTICS = click.option(
    "--statistics", type=click.Choice(["batch", "running"]), help="BatchNorm's [default: the model's]."
)
RUNNING = click.option(
    "--statistics", type=click.Choice(["batch", "running"]), default="running", show_default=True, help="BatchNorm's."
)
SEED = click.option("--seed", type=click.IntRange(min=0, max=2**62), default=1, show_default=True)
TRAJECTORIES = click.option(
    "--seed", type=click.IntRange(min=0, max=2**62), help="Of trajectories and noise [default: the run's test clips']."
)
MOTION = click.option("--motion", type=click.Choice(MOTIONS), help="Of the digits [default: the run's].")


def out_option(name: str) -> Callable[[Command], Command]:
    return click.option("--out", type=PATH, default=Path(f"{name}.png"), show_default=True, help="The PNG.")


@click.group("figure")
def figure_group() -> None:
    """Draw a figure of the paper; the numbers behind it go beside the PNG."""


@figure_group.command("velocity")
@out_option("velocity")
def velocity_command(out: Path) -> None:
    """Figure 3: the velocities of non-uniform SM-MNIST."""
    from ..evaluation.figures import velocity_figure

    velocity_figure(_checked(out))
    click.echo(out)


@figure_group.command("trajectory")
@click.argument("checkpoint", type=PATH)
@out_option("trajectory")
@click.option("--n-digits", type=click.IntRange(min=1), default=100, show_default=True, help="On one trajectory.")
@click.option("--n-samples", type=click.IntRange(min=1), default=100, show_default=True, help="Futures of each.")
@click.option("--n-future", type=click.IntRange(min=1), default=15, show_default=True, help="Frames to generate.")
@MOTION
@RUNNING
@TRAJECTORIES
@data_options
@device_options
def trajectory_command(checkpoint: Path, out: Path, motion: Motion | None, **options: Any) -> None:
    """Figure 4: where a digit goes around a wall hit, truly and in the samples of CHECKPOINT (one digit)."""
    from ..evaluation.trajectory import trajectory_figure

    model, digits, training, rest = _prepared(checkpoint, out, options)
    found = trajectory_figure(model, digits, out, motion=motion or training.motion, **rest)
    distances = ", ".join(f"{t}: {tv:.2f}" for t, tv in zip(found.times, found.distance, strict=True))
    click.echo(f"total variation distance for each frame: {distances}")
    click.echo(out)


@figure_group.command("motion")
@click.argument("checkpoints", type=PATH, nargs=-1, required=True, metavar="CHECKPOINT...")
@out_option("motion")
@click.option("--name", "names", multiple=True, help="Of each model, in their order [default: its kind].")
@click.option("--n-trajectories", type=click.IntRange(min=2), default=20, show_default=True)
@click.option("--n-digits", type=click.IntRange(min=1), default=25, show_default=True, help="On each trajectory.")
@click.option("--n-samples", type=click.IntRange(min=1), default=40, show_default=True, help="Futures of each.")
@MOTION
@RUNNING
@TRAJECTORIES
@data_options
@device_options
def motion_command(
    checkpoints: Sequence[Path], out: Path, names: Sequence[str], motion: Motion | None, **options: Any
) -> None:
    """Figure 4 over many trajectories: how well models know a digit's motion before its first wall hit and after it."""
    from ..evaluation.motion import motion_figure, motion_profile

    prepared = [_prepared(path, out, options) for path in checkpoints]
    motions = {motion or training.motion for _, _, training, _ in prepared}
    if len(motions) > 1:
        raise ValueError(f"the models must be of one motion, or --motion given, got {' and '.join(sorted(motions))}")
    (motion,) = motions
    titles = model_names([model.config.title for model, *_ in prepared], names)
    profiles = {}
    for name, (model, digits, _, rest) in zip(titles, prepared, strict=True):
        with tqdm(total=rest["n_trajectories"], desc=name, unit="trajectory") as bar:
            profiles[name] = motion_profile(model, digits, motion=motion, progress=bar.update, **rest)
        until, after = profiles[name].until_hit(), profiles[name].after_hit()
        click.echo(
            f"{name}: most frequent step is the true one up to the hit: {until.mean:.3f} ± {until.half:.3f}; "
            f"total variation distance after it: {after.mean:.3f} ± {after.half:.3f}"
        )
    motion_figure(profiles, out, motion=motion)
    click.echo(out)


@figure_group.command("prior")
@click.argument("checkpoint", type=PATH)
@out_option("prior")
@click.option("--n-clips", type=click.IntRange(min=1), default=500, show_default=True, help="On one trajectory.")
@click.option("--n-frames", type=click.IntRange(min=2), default=100, show_default=True)
@MOTION
@RUNNING
@TRAJECTORIES
@data_options
@device_options
def prior_command(checkpoint: Path, out: Path, motion: Motion | None, **options: Any) -> None:
    """The learned prior's sigma over time, on synchronised clips with their wall hits marked (SVG-LP)."""
    from ..evaluation.prior_sigma import prior_figure

    model, digits, training, rest = _prepared(checkpoint, out, options)
    found = prior_figure(model, digits, out, motion=motion or training.motion, num_digits=training.num_digits, **rest)
    around = found.around
    click.echo(
        f"sigma right after a hit: {around.at_hits:.4f}, elsewhere {around.elsewhere:.4f}; "
        f"difference in a clip: {around.difference:.4f} ± {around.difference_half:.4f}"
    )
    click.echo(out)


@figure_group.command("samples")
@click.argument("checkpoint", type=PATH)
@out_option("samples")
@click.option("--baseline", type=PATH, help="A deterministic model for a row of its own.")
@click.option("--n-samples", type=click.IntRange(min=1), default=100, show_default=True, help="Futures of each clip.")
@click.option("--n-clips", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--n-eval", type=click.IntRange(min=2), default=30, show_default=True, help="Frames of a clip.")
@click.option("--best-by", type=click.Choice(["ssim", "psnr"]), default="ssim", show_default=True)
@STATISTICS
@SEED
@data_options
@device_options
def samples_command(
    checkpoint: Path,
    out: Path,
    baseline: Path | None,
    n_samples: int,
    n_clips: int,
    n_eval: int,
    best_by: Any,
    statistics: Statistics | None,
    seed: int,
    data_root: Path | None,
    clips_file: Path | None,
    device: str | None,
    threads: int,
) -> None:
    """Figures 1 and 2: the truth, a deterministic model, the best and random samples, as PNG, GIF and .npz."""
    from ..evaluation.samples import samples_figure
    from ..evaluation.sources import clips_for, load_source

    _checked(out)
    source, where = load_source(checkpoint), chosen_device(device, threads)
    other = None if baseline is None else load_source(baseline).model.to(where)
    clips = clips_for(source, n_clips, n_eval, data_root, clips_file).to(where)
    samples_figure(
        out,
        source.model.to(where),
        clips,
        n_samples,
        seed=seed,
        baseline=other,
        best_by=best_by,
        sampling={"statistics": statistics},
    )
    click.echo(out)


def _prepared(checkpoint: Path, out: Path, options: dict[str, Any]) -> tuple[Any, Any, Any, dict[str, Any]]:
    """The model on its device, test digits (N, 32, 32), its training's settings, and the options that are left."""
    from ..data import load_digits
    from ..evaluation.sources import load_source
    from ..training.data import SEEDS

    _checked(out)
    rest = dict(options)
    device, threads, data_root = (rest.pop(name) for name in ("device", "threads", "data_root"))
    if rest.pop("clips_file") is not None:
        raise ValueError("this figure makes its own clips, on one trajectory: --clips does not fit")
    source, where = load_source(checkpoint), chosen_device(device, threads)
    digits = load_digits(data_root or source.training.data_root, "test")
    if rest["seed"] is None:
        rest["seed"] = source.training.seed + SEEDS["test"]
    return source.model.to(where), digits, source.training, rest


def _checked(out: Path) -> Path:
    """`out`, whose folder exists, before anything is computed."""
    from ..evaluation.figures import png_path

    if not png_path(out).absolute().parent.is_dir():
        raise ValueError(f"the folder of --out must exist, got {out}")
    return out
