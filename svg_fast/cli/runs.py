"""svg-fast runs."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from ..data.recipe import printable
from ..training.record import NAME, load_record
from .options import PATH

LOSSES, VALIDATION = "losses.csv", "validation.csv"

WIDTH = 120
LAST_ROWS = 50  # whose mean is shown
STOPPED_AFTER = 15 * 60  # seconds without a sign of life
_TAIL_BYTES = 2**16  # of losses.csv: far more than LAST_ROWS rows
_MAX_VALIDATION_BYTES = 2**22
_MAX_RUNS, _MAX_FOLDERS, _MAX_DEPTH = 1000, 20_000, 8
_WITHIN_A_RUN = ("checkpoints", "samples", "tensorboard", "profile")
_COLOURS = {"running": "cyan", "finished": "green", "failed": "red"}


@dataclass
class Run:
    """What a run's folder tells; None is not known.

    step of total (the last logged), epochs done of niter; loss, mse, kl: means of the last rows of losses.csv;
    best_elbo: of validation.csv; state: the record's, or "stopped?" where a running one gives no sign of life;
    started: its last start, in UTC; error: what a failed one failed of; problems: files that cannot be read.
    """

    name: str
    preset: str | None = None
    variant: str | None = None
    dataset: str | None = None
    step: int | None = None
    total: int | None = None
    epoch: int | None = None
    niter: int | None = None
    loss: float | None = None
    mse: float | None = None
    kl: float | None = None
    best_elbo: float | None = None
    clips_per_second: float | None = None
    state: str | None = None
    started: str | None = None
    error: str | None = None
    problems: list[str] = field(default_factory=list)


@click.command("runs")
@click.argument("folder", type=PATH, default="runs")
@click.option(
    "--sort",
    type=click.Choice(["loss", "started", "name"]),
    default="started",
    show_default=True,
    help="Smallest loss, latest start or name first.",
)
@click.option("--json", "as_json", is_flag=True, help="All that is known of each run, for other programs.")
def runs_command(folder: Path, sort: str, as_json: bool) -> None:
    """A table of the training runs below FOLDER [default: runs].

    Losses are means of the last 50 logged steps. A run that says it is running but has written nothing for 15 minutes
    is shown as "stopped?".
    """
    if not folder.is_dir():
        raise ValueError(f"FOLDER must be a folder with runs, got {click.format_filename(folder)!r}")
    now = time.time()
    runs = sorted((read_run(path, folder, now) for path in find_runs(folder)), key=lambda run: run.name)
    if sort == "loss":
        runs.sort(key=lambda run: math.inf if run.loss is None or math.isnan(run.loss) else run.loss)
    elif sort == "started":
        runs.sort(key=lambda run: run.started or "", reverse=True)
    if as_json:
        click.echo(json.dumps([_finite(asdict(run)) for run in runs], indent=1, allow_nan=False))
        return
    for line in table(runs, now):
        click.echo(line)
    if not runs:
        click.echo(f"no runs below {click.format_filename(folder)}")


def find_runs(folder: Path) -> Iterator[Path]:
    """The folders from `folder` downwards with run.json or losses.csv; links are not followed."""
    found = 0
    for k, (name, folders, _) in enumerate(os.walk(folder)):
        path = Path(name)
        folders[:] = sorted(name for name in folders if name not in _WITHIN_A_RUN and not name.startswith("."))
        if len(path.relative_to(folder).parts) >= _MAX_DEPTH:
            folders.clear()
        if _is_file(path / NAME) or _is_file(path / LOSSES):
            yield path
            found += 1
        if found == _MAX_RUNS or k == _MAX_FOLDERS:
            click.echo(f"these are only the first {found} runs; name a smaller FOLDER for others", err=True)
            return


def read_run(path: Path, folder: Path, now: float) -> Run:
    """The run in `path`, named from `folder`; now: seconds since 1970."""
    run = Run(path.resolve().name if path == folder else path.relative_to(folder).as_posix())
    for name, read in ((NAME, _read_record), (LOSSES, _read_losses), (VALIDATION, _read_validation)):
        if _is_file(path / name):
            try:
                read(run, path / name)
            except OSError as error:
                run.problems.append(f"{path / name}: {error.strerror}")
            except ValueError as error:
                run.problems.append(str(error))
    if run.niter and run.total and run.step is not None:
        run.epoch = run.step // (run.total // run.niter)
    if run.state == "running":
        signs = [(path / name).lstat().st_mtime for name in (NAME, LOSSES) if _is_file(path / name)]
        if now - max(signs) > STOPPED_AFTER:
            run.state = "stopped?"
    return run


def _read_record(run: Run, path: Path) -> None:
    start = load_record(path.parent)[-1]
    config, training, error = (_dict(start.get(name)) for name in ("config", "training", "error"))
    run.preset, run.variant, run.dataset = map(
        _words, (start.get("preset"), config.get("variant"), training.get("dataset"))
    )
    run.niter, epoch_size = _count(training.get("niter")), _count(training.get("epoch_size"))
    run.total = run.niter * epoch_size if run.niter and epoch_size else None
    run.step, run.state = start["step"], start["status"]
    run.started = datetime.fromisoformat(start["started"]).astimezone(timezone.utc).isoformat(timespec="seconds")
    speed = start.get("clips_per_second")
    run.clips_per_second = float(speed) if isinstance(speed, int | float) and abs(speed) < 2**63 else None
    if error:
        run.error = f"{_words(error.get('class'))}: {_words(error.get('message'))}"


def _read_losses(run: Run, path: Path) -> None:
    with path.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
        lines = file.read(_TAIL_BYTES).decode(errors="replace").split("\n")
    whole = lines[1:-1]  # the first line is the header, or cut like the last
    rows = [row for line in whole if (row := _row(line)) is not None]
    if rows:
        run.step = max(int(rows[-1][0]), run.step or 0)
        _, run.loss, run.mse, run.kl = (sum(column) / len(column) for column in zip(*rows[-LAST_ROWS:], strict=True))
    if len(rows) < len(whole):
        raise ValueError(f"{path} has {len(whole) - len(rows)} damaged rows among its last {len(whole)}")


def _row(line: str) -> tuple[float, float, float, float] | None:
    try:
        step, loss, mse, kl = line.split(",")
        return int(step), float(loss), float(mse), float(kl)
    except ValueError:
        return None


def _read_validation(run: Run, path: Path) -> None:
    with path.open("rb") as file:
        lines = file.read(_MAX_VALIDATION_BYTES).decode(errors="replace").split("\n")
    try:
        column = lines[0].split(",").index("elbo")
        bounds = [float(line.split(",")[column]) for line in lines[1:-1]]
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} is not a table with a column elbo ({error})") from error
    run.best_elbo = max((bound for bound in bounds if math.isfinite(bound)), default=None)


def table(runs: Sequence[Run], now: float) -> Iterator[str]:
    """Lines of at most `WIDTH` columns; below the runs what failed and what cannot be read. Unknown columns are left
    out."""
    rows = [_cells(run, now) for run in runs]
    headers = [name for name in _HEADERS if any(row[name] for row in rows)]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in headers[1:]}
    room = max(WIDTH - sum(width + 2 for width in widths.values()), 12)
    shown = [printable(run.name) for run in runs]
    widths["run"] = max(3, *(min(len(name), room) for name in shown)) if runs else 0
    if runs:
        yield click.style(_line(headers, {name: name for name in headers}, widths), bold=True)
    for run, row, name in zip(runs, rows, shown, strict=True):
        cells = {**row, "run": name if len(name) <= room else "…" + name[1 - room :]}
        yield _line(headers, cells, widths, _COLOURS.get(run.state or "", "yellow"))
    for run, name in zip(runs, shown, strict=True):
        if run.error is not None and run.state == "failed":
            yield printable(f"{name} failed: {run.error}", WIDTH)
        yield from (printable(f"cannot read: {problem}", 4 * WIDTH) for problem in run.problems)


_HEADERS = ("run", "model", "step", "epoch", "loss", "mse", "kl", "ELBO", "clips/s", "state", "started")
_LEFT = ("run", "model", "state")


def _cells(run: Run, now: float) -> dict[str, str]:
    model = run.preset or " ".join(filter(None, (run.variant, run.dataset)))
    elbo, speed = run.best_elbo, run.clips_per_second
    return {
        "run": run.name,
        "model": printable(model, 13),
        "step": _of(run.step, run.total),
        "epoch": _of(run.epoch, run.niter),
        "loss": "" if run.loss is None else f"{run.loss:.4g}",
        "mse": "" if run.mse is None else f"{run.mse:.3g}",
        "kl": "" if run.kl is None else f"{run.kl:.3g}",
        "ELBO": "" if elbo is None else f"{elbo:.0f}" if 100 <= abs(elbo) < 1e6 else f"{elbo:.3g}",
        "clips/s": "" if speed is None else f"{speed:.4g}",
        "state": run.state or "",
        "started": _ago(now - datetime.fromisoformat(run.started).timestamp()) if run.started else "",
    }


def _line(headers: Sequence[str], cells: dict[str, str], widths: dict[str, int], colour: str | None = None) -> str:
    padded = [f"{cells[name]:{'<' if name in _LEFT else '>'}{widths[name]}}" for name in headers]
    if colour and "state" in headers:
        k = headers.index("state")
        padded[k] = click.style(padded[k], fg=colour)
    return "  ".join(padded).rstrip()


def _of(done: int | None, total: int | None) -> str:
    if done is None:
        return ""
    return _short(done) if total is None else f"{_short(done)}/{_short(total)}"


def _short(count: int) -> str:
    """A count in at most six characters: exact up to 99999."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= 10**5 and count >= unit:
            return f"{count / unit:.4g}{name}"
    return str(count)


def _ago(seconds: float) -> str:
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name} ago"
    return "now"


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _words(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 < value < 2**40 else None


def _finite(value: dict[str, Any]) -> dict[str, Any]:
    """The same with None for every number that JSON does not know."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in value.items()}
