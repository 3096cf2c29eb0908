"""svg-fast data convert kth | bair | videos."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click
from tqdm import tqdm

from ..data.digits import Split
from ..data.recipe import printable
from .options import PATH

if TYPE_CHECKING:
    from ..data.recipe import Recipe
    from ..data.shards import Manifest

_SHOWN = 20  # of what was left out
_LEFT_OUT = 3
_LINE = 1000  # characters
_STATUS = (
    f"Exit status: 0 if all came in, {_LEFT_OUT} if something was left out, 1 for an error, 130 or 143 if stopped."
)

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group("data")
def data_group() -> None:
    """Data sets as shards, which training reads without decoding."""


@data_group.group("convert", epilog=_STATUS)
def convert_group() -> None:
    """Convert a data set's own files below SOURCE into shards in DEST.

    All cores work; the result does not depend on their number. When stopped, the same command goes on where it was;
    when finished, it converts only what has changed. What cannot be used is named, and tried again once its file has
    changed.
    """


def conversion(command: Command) -> Command:
    """The arguments and options that all kinds share."""
    for option in (
        click.option("--workers", type=click.IntRange(min=1), help="Processes [default: one for each core]."),
        click.option("--size", type=click.IntRange(min=1), default=64, show_default=True, help="Of frames, in pixels."),
        click.argument("dest", type=PATH),
        click.argument("source", type=PATH),
    ):
        command = option(command)
    return command


@convert_group.command("kth", epilog=_STATUS)
@conversion
@click.option("--sequences", type=PATH, help="List of frames [default: the 00sequences.txt below SOURCE].")
def kth_command(source: Path, dest: Path, size: int, workers: int | None, sequences: Path | None) -> None:
    """The KTH actions: the folder of their AVI files. People 1 to 20 train, 21 to 25 test."""
    from ..data.kth import KthRecipe

    convert_with(KthRecipe(source, size, sequences), source, dest, workers, "kth-lp")


@convert_group.command("bair", epilog=_STATUS)
@conversion
def bair_command(source: Path, dest: Path, size: int, workers: int | None) -> None:
    """BAIR robot pushing: the folder softmotion30_44k with its TFRecord files, or the one that holds it."""
    from ..data.bair import BairRecipe

    convert_with(BairRecipe(source, size), source, dest, workers, "bair-lp")


@convert_group.command("videos", epilog=_STATUS)
@conversion
@click.option("--channels", type=click.Choice(["1", "3"]), default="3", show_default=True, help="Grey or RGB.")
@click.option(
    "--fit",
    type=click.Choice(["squash", "crop"]),
    default="squash",
    show_default=True,
    help="The whole frame, or the largest centred square.",
)
@click.option(
    "--test-fraction",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Of the sources, where there are no folders train/ and test/.",
)
@click.option("--min-frames", type=click.IntRange(min=1), default=2, show_default=True, help="Shorter is left out.")
def videos_command(source: Path, dest: Path, size: int, workers: int | None, channels: str, **options: Any) -> None:
    """Any videos, folders of images, and .npy arrays in Moving MNIST's layout (T, N, S, S)."""
    from ..data.frames import VideosRecipe

    convert_with(VideosRecipe(source, size, int(channels), **options), source, dest, workers)


def convert_with(recipe: Recipe, source: Path, dest: Path, workers: int | None, preset: str | None = None) -> None:
    """Convert, with progress; says what came of it. Exits with 3 where something was left out.

    Raises ValueError for a DEST that is SOURCE or lies in it: a later conversion would find its own shards there.
    """
    from ..data.convert import convert

    if source.resolve() in (dest.resolve(), *dest.resolve().parents):
        raise ValueError(f"DEST must lie outside SOURCE, got {dest} in {source}")
    with _stopped(dest), tqdm(unit="B", unit_scale=True, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        manifest, n_new = convert(recipe, dest, workers=workers, progress=show)
    if not n_new:
        click.echo("all shards were there already")
    for line in _summary(manifest):
        click.echo(printable(line, _LINE))
    if any(shard.clips for shard in manifest.shards):
        folder = shlex.quote(str(dest))
        click.echo("next:")
        click.echo(printable(f"  svg-fast data inspect {folder}"))
        if preset:
            click.echo(printable(f"  svg-fast train {preset} --data-root {folder}"))
    if manifest.all_left_out():
        sys.exit(_LEFT_OUT)


@contextmanager
def _stopped(dest: Path) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the conversion in good order."""

    def stop(signum: int, _: object) -> None:
        signal.signal(signum, signal.SIG_IGN)  # its end is under way
        sys.exit(128 + signum)

    previous = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemExit:
        click.echo(f"stopped: finished shards stay in {dest}, and the same command goes on from there", err=True)
        raise
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _summary(manifest: Manifest) -> Iterator[str]:
    for split in get_args(Split):
        shards = [shard for shard in manifest.shards if shard.split == split]
        lengths = [clip.n_frames for shard in shards for clip in shard.clips]
        n_bytes = sum(shard.n_bytes for shard in shards)
        yield f"{split}: {len(shards)} shards, {len(lengths)} clips, {sum(lengths)} frames, {n_bytes} bytes"
    height, width, channels = manifest.shape
    settings = manifest.settings
    fit = f", {settings['fit']}" if "fit" in settings else ""
    yield f"frames: {height}x{width}x{channels}; resize: {settings.get('resize', 'none')}{fit}"
    left_out = manifest.all_left_out()
    if left_out:
        yield f"left out: {len(left_out)}"
    for out in left_out[:_SHOWN]:
        yield f"  {out.name}: {out.reason}"
    if len(left_out) > _SHOWN:
        yield f"  and {len(left_out) - _SHOWN} more, see manifest.json"
