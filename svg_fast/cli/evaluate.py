"""svg-fast evaluate and svg-fast report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from .options import PATH, chosen_device, data_options, device_options, file_name, model_names, sampling_options

if TYPE_CHECKING:
    from ..evaluation.results import Evaluation


@click.command("evaluate")
@click.argument("checkpoints", type=PATH, nargs=-1, required=True, metavar="CHECKPOINT...")
@click.option("--out", type=PATH, default=Path("evaluation"), show_default=True, help="Folder of the results.")
@click.option("--name", "names", multiple=True, help="Of each model in figures, in their order [default: its kind].")
@click.option("--n-samples", type=click.IntRange(min=1), default=100, show_default=True, help="Futures of each clip.")
@click.option("--n-clips", type=click.IntRange(min=1), default=256, show_default=True, help="Test clips.")
@click.option("--n-eval", type=click.IntRange(min=2), default=30, show_default=True, help="Frames of a clip.")
@click.option("--n-past", type=click.IntRange(min=1), help="Given frames [default: the model's].")
@click.option("--batch-size", type=click.IntRange(min=1), default=100, show_default=True, help="Clips at once.")
@click.option("--metrics", default="psnr,ssim", show_default=True, help="Of psnr, ssim, ssim_published, ssim_finn.")
@click.option("--best-by", help="The metric that chooses the best sample [default: each its own].")
@click.option("--lpips-weights", type=PATH, nargs=2, metavar="ALEXNET LINEAR", help="LPIPS too, with these weights.")
@click.option("--fvd-weights", type=PATH, help="FVD too, with these I3D weights.")
@click.option("--n-pictures", type=click.IntRange(min=0), default=4, show_default=True, help="Clips shown as pictures.")
@sampling_options
@data_options
@device_options
def evaluate_command(
    checkpoints: Sequence[Path],
    out: Path,
    names: Sequence[str],
    n_clips: int,
    n_eval: int,
    n_past: int | None,
    metrics: str,
    lpips_weights: tuple[Path, Path] | None,
    fvd_weights: Path | None,
    n_pictures: int,
    data_root: Path | None,
    clips_file: Path | None,
    device: str | None,
    threads: int,
    **options: Any,
) -> None:
    """Score the samples of models on test clips; a CHECKPOINT is of a training run, in the hub's format, or published.

    Best, mean and worst of N samples for each frame, with 95 % intervals; the variational bound; diversity. Writes a
    JSON and a CSV for each model, the curves of all in one figure, pictures, and one report.html that holds it all.
    """
    from ..evaluation.evaluate import Settings, evaluate
    from ..evaluation.fvd import I3D
    from ..evaluation.lpips import LPIPS
    from ..evaluation.results import save_csv, save_json
    from ..evaluation.samples import samples_figure
    from ..evaluation.sources import clips_for, load_source

    settings = Settings(metrics=tuple(name for name in metrics.replace(" ", "").split(",") if name), **options)
    where = chosen_device(device, threads)
    sources = [load_source(path) for path in checkpoints]
    titles = model_names([source.model.config.title for source in sources], names)
    lpips = None if lpips_weights is None else LPIPS.load(*lpips_weights).to(where)
    i3d = None if fvd_weights is None else I3D.load(fvd_weights).to(where)
    out.mkdir(parents=True, exist_ok=True)
    evaluations, pictures = [], {}
    for source, title in zip(sources, titles, strict=True):
        clips = clips_for(source, n_clips, n_eval, data_root, clips_file)
        model, stem = source.model.to(where), out / file_name(title)
        n_samples = 1 if model.config.variant == "det" else settings.n_samples
        with tqdm(total=n_samples * len(clips), desc=title, unit="rollout", smoothing=0.05) as bar:
            found = evaluate(
                model, clips, settings, name=title, n_past=n_past, lpips=lpips, i3d=i3d, progress=bar.update
            )
        found = replace(found, protocol=_with_origin(found, source.training, clips_file))
        save_json(found, stem.with_suffix(".json"))
        save_csv(found, stem.with_suffix(".csv"))
        evaluations.append(found)
        if n_pictures:
            picture = out / f"{file_name(title)}-samples.png"
            samples_figure(
                picture,
                model,
                clips[: max(n_pictures, 2)].to(where),  # one clip has no batch statistics
                settings.n_samples,
                seed=settings.seed,
                best_by="ssim" if "ssim" in settings.metrics else "psnr",
                n_past=n_past,
                sampling={
                    "statistics": settings.statistics,
                    "temperature": settings.temperature,
                    "memory_limit": settings.memory_limit,
                },
            )
            pictures[f"{title}: test clips, the best of their samples and random ones"] = picture
            pictures[f"{title}: the same, as they play"] = picture.with_suffix(".gif")
    _conclude(evaluations, pictures, out)


@click.command("report")
@click.argument("results", type=PATH, nargs=-1, required=True, metavar="JSON...")
@click.option("--out", type=PATH, default=Path("report"), show_default=True, help="Folder of figure and report.")
def report_command(results: Sequence[Path], out: Path) -> None:
    """Draw the curves of several evaluations, JSON files that `svg-fast evaluate` wrote, in one figure and report."""
    from ..evaluation.results import load_json

    evaluations = [load_json(path) for path in results]
    model_names([evaluation.name for evaluation in evaluations], ())
    out.mkdir(parents=True, exist_ok=True)
    _conclude(evaluations, {}, out)


def _conclude(evaluations: Sequence[Evaluation], pictures: dict[str, Path], out: Path) -> None:
    """The figure of all, the report, and where that is."""
    from ..evaluation.curves import curve_figure
    from ..evaluation.report import write_report
    from ..evaluation.results import label

    curve_figure(evaluations, out / "curves.png")
    write_report(out / "report.html", evaluations, pictures)
    for evaluation in evaluations:
        best = (f"{label(m)} {of['best'].average[0]:.4g}" for m, of in evaluation.curves.items())
        click.echo(f"{evaluation.name}: best samples: {', '.join(best)}")
    click.echo(out / "report.html")


def _with_origin(found: Evaluation, training: Any, clips_file: Path | None) -> dict[str, Any]:
    """The protocol, with where the clips came from and the command that repeats it."""
    data: dict[str, Any] = {"clips": str(clips_file)}
    if clips_file is None:
        data = {"dataset": training.dataset, "num_digits": training.num_digits, "motion": training.motion}
    return {**found.protocol, **data, "command": shlex.join(["svg-fast", *sys.argv[1:]])}
