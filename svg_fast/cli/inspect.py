"""svg-fast data inspect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

from .options import PATH

if TYPE_CHECKING:
    from ..data.shards import Manifest

_LISTED = 5  # of what was left out; the page has more


@click.command("inspect")
@click.argument("dest", type=PATH)
@click.option("--out", type=PATH, help="The page [default: DEST/inspect.html].")
@click.option("--verify", is_flag=True, help="Read every shard and check its SHA-256 first.")
def inspect_command(dest: Path, out: Path | None, verify: bool) -> None:
    """Show what the shards in DEST hold: numbers here, and clips, pixels and lengths in one HTML page.

    The page needs no network and nothing beside it. It shows clips spread over each split, still and playing; its size
    does not grow with the data set.
    """
    from ..data.recipe import printable
    from ..data.shards import damaged, load_manifest
    from ..evaluation.data_page import write_data_page

    out = out or dest / "inspect.html"
    if out.suffix != ".html":
        raise ValueError(f"--out must end in .html, got {printable(out.name)!r}")
    manifest = load_manifest(dest)
    _print(manifest)
    if verify:
        total = sum(shard.n_bytes for shard in manifest.shards)
        with tqdm(total=total, desc="verifying", unit="B", unit_scale=True) as bar:
            bad = damaged(dest, manifest.shards, bar.update)
        if bad:
            n_bad = f"{len(bad)} of {len(manifest.shards)} shards"
            raise ValueError(f"{n_bad} must be converted again, they are damaged: {', '.join(bad)}")
        click.echo(f"verified: {len(manifest.shards)} shards have the SHA-256 of the manifest\n")
    write_data_page(out, dest)
    click.echo(click.format_filename(out))


def _print(manifest: Manifest) -> None:
    from ..data.recipe import printable
    from ..evaluation.data_page import numbers, printable_source, settings

    height, width, channels = manifest.shape
    click.echo(f"{printable(manifest.kind)}: frames of {height} x {width} pixels, channels: {channels}\n")
    rows = [("", ["train", "test"]), *numbers(manifest)]
    left, right = (max(map(len, words)) for words in ((name for name, _ in rows), (c for _, of in rows for c in of)))
    for name, counts in rows:
        click.echo(f"{name:<{left}}" + "".join(f"{count:>{right + 3}}" for count in counts))
    left_out = manifest.all_left_out()
    click.echo(f"\nleft out: {len(left_out):,}")
    for name, reason in map(printable_source, left_out[:_LISTED]):
        click.echo(f"  {name}: {reason}")
    if len(left_out) > _LISTED:
        click.echo(f"  and {len(left_out) - _LISTED:,} more, of which the page lists the first")
    click.echo("\nsettings")
    for name, words in settings(manifest):
        click.echo(f"  {name}: {words}")
    click.echo()
