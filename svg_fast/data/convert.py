"""From a data set's own files to shards: in parallel, and resumed where it was stopped.

While a conversion is under way each finished shard has a sidecar `<shard>.json`, a manifest of this shard alone.
manifest.json takes their place when all shards are there: a folder that has it is whole. A tar appears only after its
sidecar, so whatever a kill leaves behind is known to be ours, and a shard counts once both are there and agree.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import pickle
import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, get_args

from ..files import remove_leftovers, replacing
from .digits import Split
from .recipe import BadSource, LeftOut, Recipe, Source
from .shards import MANIFEST, Manifest, Shard, ShardWriter, load_manifest, save_manifest

Progress: TypeAlias = Callable[[int, int], None]

# A set is cut into about 64 shards, to keep many cores busy, of sources of 1 to 128 MiB.
_N_SHARDS, _MIN_SHARD, _MAX_SHARD = 64, 2**20, 2**27
_LOCK = ".converting"
_OURS = re.compile(r"(train|test)-\d{5,}\.(tar|json)")


class Converted(NamedTuple):
    """What the folder holds now, and how many of its shards were not there before."""

    manifest: Manifest
    n_new: int


class _Plan(NamedTuple):
    """A shard to be: its number is unique over the splits."""

    number: int
    split: Split
    sources: list[Source]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}.tar"

    @property
    def stamps(self) -> list[tuple[str, int, int]]:
        return [(source.name, source.n_bytes, source.modified) for source in self.sources]

    def is_made(self, shard: Shard | None, dest: Path) -> bool:
        if shard is None or shard.sources != self.stamps:
            return False
        try:
            return (dest / self.name).stat().st_size == shard.n_bytes
        except FileNotFoundError:
            return False


def convert(recipe: Recipe, dest: Path, *, workers: int | None = None, progress: Progress | None = None) -> Converted:
    """Convert the sources of a recipe into shards in `dest`; the same bytes whatever the number of processes.

    Shards that are there already, made with the same settings of the same files (name, size, time of change), are kept;
    those of files that changed or went are made anew or removed. A source that raises BadSource is left out, and named
    in the manifest, until it changes. Files that a conversion did not write are never removed or replaced.

    workers: processes that convert one shard each at a time [default: the cores this process may use]. They are started
    afresh, so a script that calls this needs `if __name__ == "__main__":`. progress: called with (bytes of the sources
    that are done, bytes of all).

    Raises ValueError for a `dest` with shards of another kind or other settings, or with other files in the way, before
    anything is changed; BlockingIOError while another conversion into `dest` is at work; OSError for a disk that is
    full or cannot be written, ChildProcessError for a process that died, and what the recipe raises. Finished shards
    stay, nothing half-written does, and the same call goes on from there.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    sources, left_out = recipe.sources()
    plans = _plans(sources)
    dest.mkdir(parents=True, exist_ok=True)
    with _locked(dest):
        found = _found(recipe, dest, plans)
        kept = {plan.name: found[plan.name] for plan in plans if plan.is_made(found.get(plan.name), dest)}
        whole = _manifest(recipe, list(kept.values()), left_out)
        if len(kept) == len(plans) and _is_finished(dest, whole):
            return Converted(whole, 0)
        remove_leftovers(dest)
        _reopen(recipe, dest, found, kept)
        todo = [plan for plan in plans if plan.name not in kept]
        report = _Report(progress, sources, todo)
        try:
            made = _convert_all(recipe, dest, todo, workers or _n_cores(), report) if todo else {}
        finally:
            remove_leftovers(dest)
        whole = _manifest(recipe, [(kept | made)[plan.name] for plan in plans], left_out)
        save_manifest(dest, whole)
        for sidecar in _sidecars(dest):
            sidecar.unlink()
    return Converted(whole, len(made))


def _plans(sources: list[Source]) -> list[_Plan]:
    """Shards of consecutive sources; they depend on the sources alone."""
    limit = min(max(sum(source.n_bytes for source in sources) // _N_SHARDS, _MIN_SHARD), _MAX_SHARD)
    plans = list[_Plan]()
    for split in get_args(Split):
        room = 0
        for source in sources:
            if source.split == split:
                if room <= 0:
                    plans.append(_Plan(len(plans), split, []))
                    room = limit
                plans[-1].sources.append(source)
                room -= source.n_bytes
    return plans


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _locked(dest: Path) -> Iterator[None]:
    """The folder for this process and its workers, who share the lock; the death of all of them frees it."""
    path = dest / _LOCK
    with path.open("a+b") as lock:
        try:
            for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH):
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
            busy = os.fstat(lock.fileno()).st_nlink == 0  # the other has only just ended and removed the file
        except BlockingIOError:
            busy = True
        if busy:
            raise BlockingIOError(f"another conversion into {dest} is at work: wait for it, or end it")
        try:
            yield
        finally:
            path.unlink()


def _manifest(recipe: Recipe, shards: list[Shard], left_out: list[LeftOut]) -> Manifest:
    return Manifest(recipe.kind, recipe.shape, recipe.settings, shards, left_out)


def _is_finished(dest: Path, whole: Manifest) -> bool:
    return (dest / MANIFEST).exists() and load_manifest(dest) == whole and not _sidecars(dest)


def _sidecars(dest: Path) -> list[Path]:
    return sorted(path for path in dest.iterdir() if path.suffix == ".json" and _OURS.fullmatch(path.name))


def _sidecar(shard: str) -> str:
    return str(Path(shard).with_suffix(".json"))


def _found(recipe: Recipe, dest: Path, plans: list[_Plan]) -> dict[str, Shard]:
    """The shards in `dest` by name; ValueError for those of other settings, and for foreign files of the same names."""
    shards = dict[str, Shard]()
    wanted = _described(_manifest(recipe, [], []))
    for path in [*_sidecars(dest), *([dest / MANIFEST] if (dest / MANIFEST).exists() else [])]:
        try:
            manifest = load_manifest(dest, path.name)
        except ValueError as error:
            raise ValueError(f"{error}: remove it, or choose another folder") from error
        got = _described(manifest)
        differing = [
            f"{key} = {got.get(key)!r}, not {wanted.get(key)!r}"
            for key in wanted | got
            if got.get(key) != wanted.get(key)
        ]
        if differing:
            raise ValueError(
                f"{dest} holds shards with {'; '.join(differing)}: choose another folder, remove this one, or convert "
                "with the same settings"
            )
        shards |= {shard.name: shard for shard in manifest.shards}
    for plan in plans:
        if plan.name not in shards and (dest / plan.name).exists():
            raise ValueError(f"{dest / plan.name} is in the way, and no conversion wrote it: choose another folder")
    return shards


def _described(manifest: Manifest) -> dict[str, Any]:
    return {"kind": manifest.kind, "shape": list(manifest.shape), **manifest.settings}


def _reopen(recipe: Recipe, dest: Path, found: Mapping[str, Shard], kept: Mapping[str, Shard]) -> None:
    """From a manifest back to sidecars, without what is stale; at every moment each tar is named by one of them."""
    if (dest / MANIFEST).exists():
        for name, shard in kept.items():
            save_manifest(dest, _manifest(recipe, [shard], []), _sidecar(name))
    stale = [name for name in found if name not in kept and _OURS.fullmatch(name)]
    for name in stale:
        (dest / name).unlink(missing_ok=True)
    (dest / MANIFEST).unlink(missing_ok=True)
    for name in stale:
        (dest / _sidecar(name)).unlink(missing_ok=True)


class _Report:
    """Adds up the bytes of the sources that are done."""

    def __init__(self, progress: Progress | None, sources: list[Source], todo: list[_Plan]) -> None:
        self._progress = progress
        self._total = sum(source.n_bytes for source in sources)
        self._done = self._total - sum(source.n_bytes for plan in todo for source in plan.sources)
        self.add(0)

    def add(self, n_bytes: int) -> None:
        self._done += n_bytes
        if self._progress:
            self._progress(self._done, self._total)


# What a worker sends: True for each source it is done with, at last the shard, or an error with its stack trace.
_Message: TypeAlias = bool | Shard | tuple[Exception, str]


class _Worker:
    """A process that converts one shard at a time, as its parent knows it."""

    def __init__(self, context: ForkServerContext, recipe: Recipe, dest: Path, plan: _Plan) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(recipe, dest, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.give(plan)

    def give(self, plan: _Plan) -> None:
        self.plan, self.n_done = plan, 0
        with suppress(BrokenPipeError):  # it has died, which the next `take` tells
            self.pipe.send(plan)

    def take(self) -> _Message:
        try:
            message: _Message = self.pipe.recv()
        except (EOFError, ConnectionError):
            raise self._death() from None
        return message

    def end(self) -> None:
        """Returns when it is dead, and so writes no more."""
        self.process.kill()
        with suppress(EOFError, OSError):
            while True:
                self.pipe.recv_bytes()
        self.pipe.close()
        self.process.join()

    def _death(self) -> ChildProcessError:
        self.process.join()
        code = self.process.exitcode or 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        if code == -signal.SIGKILL:
            how += ", as when memory runs out (then use fewer workers)"
        at = [source.name for source in self.plan.sources[self.n_done :]] + [self.plan.name]
        return ChildProcessError(
            f"the process that converted {at[0]!r} {how}; finished shards are kept: try again, or without this file"
        )


def _convert_all(recipe: Recipe, dest: Path, plans: list[_Plan], n_workers: int, report: _Report) -> dict[str, Shard]:
    """The shards that were planned, by name; whatever happens no worker is left."""
    context = _start_server(type(recipe).__module__)
    waiting, workers, made = plans[::-1], dict[Connection, _Worker](), dict[str, Shard]()
    try:
        while len(workers) < n_workers and waiting:
            worker = _Worker(context, recipe, dest, waiting.pop())
            workers[worker.pipe] = worker
        while len(made) < len(plans):
            for pipe in wait(list(workers)):
                worker = workers[pipe]  # type: ignore[index]
                message = worker.take()
                if isinstance(message, tuple):
                    raise message[0] from RuntimeError(f"in a worker process:\n{message[1]}")
                if isinstance(message, bool):
                    report.add(worker.plan.sources[worker.n_done].n_bytes)
                    worker.n_done += 1
                    continue
                made[message.name] = message
                if waiting:
                    worker.give(waiting.pop())
    finally:
        for worker in workers.values():
            worker.end()
    return made


def _start_server(module: str) -> ForkServerContext:
    """What workers are forked from, once it has imported torch and the recipe's module for all of them.

    A Ctrl-C goes to it too, and would be a stack trace while it imports. So it inherits a mask without it; the tracker
    comes first, because its start undoes the mask.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, module])
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return context


def _work(recipe: Recipe, dest: Path, pipe: Connection) -> None:
    """The life of a worker."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # a terminal sends them to all; the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # when the parent has gone, or had before the lock, which it then removes, was found
    with suppress(EOFError, BrokenPipeError, FileNotFoundError), (dest / _LOCK).open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        while True:
            plan = pipe.recv()
            try:
                message: _Message = _convert_shard(recipe, dest, plan, lambda: pipe.send(True))
            except Exception as error:
                message = _portable(error), traceback.format_exc()
            pipe.send(message)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """The error, or one that can be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _convert_shard(recipe: Recipe, dest: Path, plan: _Plan, source_done: Callable[[], None]) -> Shard:
    left_out = list[LeftOut]()
    with replacing(dest / plan.name) as part:
        with part.open("w+b") as file:
            writer = ShardWriter(file, plan.number, recipe.shape)
            for index, source in enumerate(plan.sources):
                try:
                    writer.add(source, index, recipe.clips(source))
                except BadSource as error:
                    left_out.append(LeftOut(source.name, str(error)))
                source_done()
            sha256 = writer.finish()
        size = part.stat().st_size
        shard = Shard(plan.name, plan.split, size, sha256, plan.stamps, writer.clips, left_out)
        save_manifest(dest, _manifest(recipe, [shard], []), _sidecar(plan.name))
    return shard
