"""svg-fast sample and svg-fast convert."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..files import replacing
from ..models.generation import SampleOptions
from .options import PATH, chosen_device, data_options, device_options, sampling_options

_SHOWN_CLIPS, _SHOWN_SAMPLES = 4, 8  # of the pictures


@click.command("sample")
@click.argument("checkpoint", type=PATH)
@click.option("--out", type=PATH, default=Path("samples.npy"), show_default=True, help="Pictures go beside it.")
@click.option("--n-samples", type=click.IntRange(min=1), default=8, show_default=True, help="Futures of each clip.")
@click.option("--n-clips", type=click.IntRange(min=1), default=16, show_default=True, help="Clips to begin from.")
@click.option("--n-past", type=click.IntRange(min=1), help="Given frames [default: the model's].")
@click.option("--n-future", type=click.IntRange(min=1), default=25, show_default=True, help="Frames to generate.")
@click.option("--latents", type=click.Choice(["prior", "posterior"]), default="prior", show_default=True)
@click.option("--branch-at", type=click.IntRange(min=1), help="First frame, counted from 0, that samples do not share.")
@sampling_options
@data_options
@device_options
def sample_command(
    checkpoint: Path,
    out: Path,
    n_samples: int,
    n_clips: int,
    n_past: int | None,
    n_future: int,
    data_root: Path | None,
    clips_file: Path | None,
    device: str | None,
    threads: int,
    **options: object,
) -> None:
    """Generate futures of test clips with CHECKPOINT: of a training run, in the hub's format, published, or the name of
    a model that comes with the library (smmnist-1digit-lp).

    Writes all of them, a chunk at a time, to one .npy of uint8 (samples, clips, frames, height, width, channels), given
    frames first; and a PNG and a GIF of the first ones.
    """
    from ..evaluation.sources import clips_for, load_source

    if out.suffix != ".npy":
        raise ValueError(f"--out must end in .npy, got {out.name!r}")
    source = load_source(checkpoint)
    n_past = n_past or source.model.config.n_past
    where = chosen_device(device, threads)
    clips = clips_for(source, n_clips, n_past + n_future, data_root, clips_file).to(where)
    sampling = SampleOptions(**options)  # type: ignore[typeddict-item]
    given = clips if options["latents"] == "posterior" else clips[:, :n_past]
    shape = (n_samples, len(clips), n_past + n_future, *clips.shape[3:], clips.shape[2])
    shown = torch.zeros(min(n_samples, _SHOWN_SAMPLES), min(len(clips), _SHOWN_CLIPS), *clips.shape[1:])
    with replacing(out) as part:
        video = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
        with tqdm(total=n_samples * len(clips), unit="rollout", smoothing=0.05) as bar:
            for samples, of, frames, _ in source.model.to(where).sample_chunks(given, n_future, n_samples, **sampling):
                levels = (frames * 255).round().to(torch.uint8).permute(0, 1, 2, 4, 5, 3)
                video[samples.start : samples.stop, of.start : of.stop] = levels.cpu().numpy()
                corner = frames[: max(len(shown) - samples.start, 0), : max(shown.shape[1] - of.start, 0)].cpu()
                shown[samples.start :][: len(corner), of.start :][:, : corner.shape[1]] = corner
                bar.update(len(samples) * len(of))
        video.flush()
        del video
    click.echo(out)
    for picture in _draw(out, shown, clips[: shown.shape[1]].cpu() / 255, n_past):
        click.echo(picture)


def _draw(out: Path, samples: Tensor, truth: Tensor, n_past: int) -> tuple[Path, Path]:
    """Samples (S, B, T, C, H, W) below the true clips (B, T, C, H, W), as PNG and GIF beside `out`."""
    from ..evaluation.strips import Row, write_rows

    rows = [Row("truth", truth, truth.shape[1])]
    rows += [Row(f"sample {k + 1}", sample, n_past) for k, sample in enumerate(samples)]
    return write_rows(out.with_suffix(".gif"), rows)


@click.command("convert")
@click.argument("source", type=PATH)
@click.argument("target", type=PATH)
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="Of a folder's weights.")
def convert_command(source: Path, target: Path, dtype: str | None) -> None:
    """Convert between published checkpoints, the hub's format, and checkpoints of training runs.

    SOURCE is any of them. TARGET ending in .pth becomes a published checkpoint, which the original scripts open; else a
    folder with model.safetensors and config.json.
    """
    from ..compat import convert

    click.echo(convert(source, target, None if dtype is None else getattr(torch, dtype)))
