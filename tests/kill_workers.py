"""Kills what trains, at random moments, over and over: every run must end by itself, as if nobody had disturbed it.

`make faults`. Two workers under torchrun write a checkpoint every few steps. One of them is killed with SIGKILL, and
torchrun starts both again; or all are killed, torchrun too, and the command is given again. Moments are drawn from the
seed of a round, which is printed, and so is how long it took; the rest of a machine is not drawn from it.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from tiny_run import command

from svg_fast.training import checkpoint

STEPS, EVERY = 40, 5
OPTIONS = ("--niter", "1", "--epoch-size", str(STEPS), "--batch-size", "4", "--checkpoint-every", str(EVERY))
_STARTUP = 6.0  # seconds, about: a second kill falls before, in or after it


class Run:
    """torchrun with two workers that train with OPTIONS in log_dir; what they say is in a file beside it."""

    def __init__(self, log_dir: Path, *extra: str, restarts: int = 0) -> None:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        self.log_dir, self.said = log_dir, log_dir.with_name(f"{log_dir.name}.txt")
        with self.said.open("w") as file:
            self.process = subprocess.Popen(
                [*launch, "--max-restarts", str(restarts), *command(log_dir, *OPTIONS, *extra)[1:]],
                stdout=file,
                stderr=file,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def workers(self) -> list[int]:
        """The processes that torchrun has started and that live, oldest first."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue  # it has ended meanwhile
            if int(parent) == self.process.pid and state != "Z":
                found.append(int(stat.parent.name))
        return sorted(found)

    def wait_for(self, step: int, limit: float) -> None:
        """Until a checkpoint of this step or a later one is there, or the run has ended."""
        deadline = time.monotonic() + limit
        while self.process.poll() is None and saved(self.log_dir) < step:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no checkpoint of step {step} in {limit:g} seconds:\n{self.output()}")
            time.sleep(0.002)

    def wait(self, limit: float) -> int:
        """The exit status; TimeoutError with all that was said where the run does not end."""
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the run did not end in {limit:g} seconds:\n{self.output()}") from None

    def output(self) -> str:
        return self.said.read_text()

    def kill(self) -> None:
        """torchrun first, so that it cannot start anything again, and then its workers."""
        workers = self.workers()
        self.process.kill()
        for worker in workers:
            kill(worker)
        self.process.wait()


@contextmanager
def started(log_dir: Path, *extra: str, restarts: int = 0) -> Iterator[Run]:
    """A Run, of which nothing is left behind."""
    run = Run(log_dir, *extra, restarts=restarts)
    try:
        yield run
    finally:
        run.kill()


def kill(process: int, signum: signal.Signals = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):  # it was quicker
        os.kill(process, signum)


def saved(log_dir: Path) -> int:
    """The step of the newest checkpoint."""
    found = checkpoint.find_all(log_dir / "checkpoints")
    return int(found[-1].stem.removeprefix("step-")) if found else 0


def finish(log_dir: Path, limit: float) -> None:
    """Train to the end, undisturbed; RuntimeError with all that was said where that fails."""
    with started(log_dir, "--resume") as run:
        expect_success(run, limit)


def expect_success(run: Run, limit: float) -> None:
    if status := run.wait(limit):
        raise RuntimeError(f"the run ended with status {status}:\n{run.output()}")


def assert_same(log_dir: Path, undisturbed: Path) -> None:
    """Every tensor of the last checkpoint, bit for bit, and every logged loss."""
    got, want = (checkpoint.load(checkpoint.path_of(run / "checkpoints", STEPS)) for run in (log_dir, undisturbed))
    assert got.tensors.keys() == want.tensors.keys()
    unlike = [name for name in want.tensors if not torch.equal(got.tensors[name], want.tensors[name])]
    assert not unlike, f"{len(unlike)} of {len(want.tensors)} tensors differ, first {unlike[0]}"
    assert (log_dir / "losses.csv").read_text() == (undisturbed / "losses.csv").read_text()


def disturb(log_dir: Path, moments: random.Random, limit: float) -> str:
    """A run that is killed once or twice and must end within `limit` seconds -> what was done to it."""
    deeds = []
    with started(log_dir, restarts=2) as run:
        for number in range(moments.randint(1, 2)):
            if number == 0:
                run.wait_for(EVERY * moments.randrange(1, STEPS // EVERY), limit)
                time.sleep(moments.random() * 0.2)
            else:
                time.sleep(moments.random() * 1.5 * _STARTUP)
            if victims := run.workers():
                victim = moments.randrange(len(victims))
                deeds.append(f"worker {victim} after step {saved(log_dir)}")
                kill(victims[victim])
        if moments.random() < 0.7:
            expect_success(run, limit)
            return ", ".join(deeds)
        time.sleep(moments.random() * _STARTUP)
        run.kill()
    deeds.append(f"everything after step {saved(log_dir)}")
    finish(log_dir, limit)
    return ", ".join(deeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10, help="rounds")
    parser.add_argument("--seed", type=int, default=0, help="of the first round; the next ones count up")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds that a run may take to end")
    arguments = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = Path(folder) / "undisturbed"
        finish(undisturbed, arguments.limit)
        for seed in range(arguments.seed, arguments.seed + arguments.times):
            log_dir, began = Path(folder) / str(seed), time.monotonic()
            try:
                deeds = disturb(log_dir, random.Random(seed), arguments.limit)
                assert_same(log_dir, undisturbed)
                verdict = f"the same, bit for bit; killed: {deeds}"
            except (AssertionError, RuntimeError, OSError, ValueError) as error:
                failed += 1
                verdict = f"FAILED: {error}"
            print(f"seed {seed}: {time.monotonic() - began:.1f} s, {verdict}", flush=True)
    print(f"{arguments.times - failed} of {arguments.times} runs survived")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
