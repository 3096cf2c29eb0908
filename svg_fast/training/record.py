"""run.json: with what, where and by which code a run was made, one entry for each start of it.

It is for people and for `svg-fast runs`; training reads nothing from it. A record that cannot be written is a warning:
nothing here ends a run.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from .. import __version__, backend
from ..files import replacing
from ..models import SVGConfig
from .config import TrainConfig

logger = logging.getLogger("svg_fast")

Status = Literal["running", "finished", "interrupted", "failed"]

NAME = "run.json"
FORMAT, VERSION = "svg_fast.run", 1
MAX_STARTS = 50  # of which the first is always kept
_MAX_BYTES = 8 * 2**20
_MAX_CHANGED = 100  # names of changed files
_MAX_MESSAGE = 2000  # characters of an error's
_GIT_SECONDS = 5

# Who started the process and as which of how many; no other variable of the environment is kept.
_ENVIRONMENT = (
    *("SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT"),
    *("SLURM_NNODES", "SLURM_NTASKS", "SLURM_PROCID"),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK"),
)


@dataclass
class Progress:
    """How far a run is; whoever trains keeps it up to date."""

    step: int
    clips_per_second: float | None = None


@contextmanager
def recorded(
    log_dir: Path,
    config: SVGConfig,
    training: TrainConfig,
    *,
    first: int = 0,
    preset: str | None = None,
    interruptions: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
) -> Iterator[Progress]:
    """A start of the run for the record, from step `first` on, and how it ends.

    An exception of `interruptions` is an interrupted run, any other one a failed run; both go on to the caller.
    """
    progress = Progress(first)
    write_record(log_dir, config, training, first=first, preset=preset)
    try:
        yield progress
    except BaseException as error:
        status: Status = "interrupted" if isinstance(error, interruptions) else "failed"
        update_record(log_dir, status, progress.step, clips_per_second=progress.clips_per_second, error=error)
        raise
    update_record(log_dir, "finished", progress.step, clips_per_second=progress.clips_per_second)


def write_record(
    log_dir: Path,
    config: SVGConfig,
    training: TrainConfig,
    *,
    first: int = 0,
    preset: str | None = None,
    command: Sequence[str] | None = None,
) -> None:
    """Append a start of the run to log_dir/run.json; of several processes one may do so.

    first: the step that it goes on from. preset: the settings' name, where they have one. command: by default the
    command line of this process.
    """
    entry = {
        "status": "running",
        "started": _now(),
        "first_step": first,
        "step": first,
        "preset": preset,
        "command": shlex.join(sys.orig_argv if command is None else command),
        "config": _to_json(config),
        "training": _to_json(training),
        "seed": training.seed,
        "processes": torch.distributed.get_world_size() if _is_distributed() else 1,
        "threads": torch.get_num_threads(),
        "versions": {
            "svg_fast": __version__,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "kernels": backend.build_info(),
        "machine": _machine(),
        "git": {"working_directory": git_state(Path.cwd()), "svg_fast": _own_checkout()},
        "environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    }
    try:
        starts = load_record(log_dir) if (log_dir / NAME).exists() else []
    except (ValueError, OSError) as error:
        logger.warning("%s; a new one takes its place", error)
        starts = []
    _write(log_dir, [*starts[:1], *starts[1:][-(MAX_STARTS - 2) :], entry])


def update_record(
    log_dir: Path,
    status: Status,
    step: int,
    *,
    clips_per_second: float | None = None,
    error: BaseException | None = None,
) -> None:
    """Say how the last start of the run ended or, with status "running", how far it is."""
    try:
        starts = load_record(log_dir)
    except (ValueError, OSError) as problem:
        logger.warning("how the run went is not in its record: %s", problem)
        return
    speed = clips_per_second if clips_per_second is not None and math.isfinite(clips_per_second) else None
    starts[-1] |= {"status": status, "step": step, "updated": _now(), "clips_per_second": speed}
    if error is not None:
        starts[-1]["error"] = {"class": type(error).__name__, "message": str(error)[:_MAX_MESSAGE]}
    _write(log_dir, starts)


def load_record(log_dir: Path) -> list[dict[str, Any]]:
    """The starts of a run, oldest first, at least one; each has a status, and the step and time it began with.

    Raises ValueError for a file that is damaged or something else, OSError if it cannot be opened.
    """
    path = log_dir / NAME
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    # whatever a damaged or hostile file makes of Python, it is the file that is wrong
    try:
        if len(data) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES} bytes")
        content = json.loads(data)
        if content["format"] != FORMAT or content["version"] > VERSION:
            raise ValueError(f"format {content['format']!r}, version {content['version']!r}")
        starts = content["starts"]
        if not isinstance(starts, list) or not starts:
            raise ValueError("no start of a run")
        for start in starts:
            datetime.fromisoformat(start["started"]).astimezone(timezone.utc)
            status, step = start["status"], start["step"]
            if status not in get_args(Status) or type(step) is not int or not 0 <= step < 2**63:
                raise ValueError(f"status {status!r}, step {step!r}")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is not a record of a run up to version {VERSION} ({error})") from error
    return starts


def git_state(folder: Path) -> dict[str, Any] | None:
    """commit, dirty (files under version control differ from it) and changed, some of those files' names.

    None where there is no git, no repository or no commit, or git takes too long.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    status = _git(folder, "status", "--porcelain=v1", "-z", "--untracked-files=no", "--no-renames")
    if commit is None or status is None:
        return None
    changed = [entry[3:] for entry in status.split("\0") if entry]
    return {"commit": commit.strip(), "dirty": bool(changed), "changed": changed[:_MAX_CHANGED]}


def _git(folder: Path, *arguments: str) -> str | None:
    # without locks, so that nothing of the user's is touched, and without a monitor that a repository may name
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_GIT_SECONDS, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")


def _own_checkout() -> dict[str, Any] | None:
    """The state of this source, if it is a checkout: not that of a repository around an installed package."""
    root = Path(__file__).resolve().parents[2]
    return git_state(root) if (root / ".git").exists() else None


def _machine() -> dict[str, Any]:
    """Platform, processor and devices by their models; not the machine's name."""
    return {
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "devices": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
    }


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            lines = file.read(2**16).splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _write(log_dir: Path, starts: list[dict[str, Any]]) -> None:
    content = {"format": FORMAT, "version": VERSION, "starts": starts}
    try:
        with replacing(log_dir / NAME) as part:
            part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        logger.warning("cannot write %s: %s", log_dir / NAME, error.strerror or error)


def _to_json(settings: SVGConfig | TrainConfig) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()}


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
