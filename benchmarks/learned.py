"""Trains the models of docs/results.md and measures them, by the commands of that page.

    python benchmarks/learned.py train --data-root MNIST     two runs at a time, a thread each; again, and it resumes
    python benchmarks/learned.py measure --data-root MNIST   evaluation, figures, and the numbers that it prints

MNIST is a folder with the idx files. Everything goes under --out, runs/learned by default; a command is printed before
it runs.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from svg_fast.data import MovingMNIST, load_digits
from svg_fast.data.synchronised import find_first_hits
from svg_fast.evaluation.results import load_json

# A deterministic model with a constant learning rate, whose parameters all four models begin with.
BASE = "base"
BASE_STEPS = 2500
MODELS = ("lp", "det", "fp", "lp-nonuniform")
AT_ONCE = 2

HIT = 8  # the frame, from 1, of the first hit of all clips of the evaluation: predicted frame 3
N_CLIPS, N_FRAMES, SEED = 256, 30, 2  # the seed of a run's test clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "measure"])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/learned"))
    arguments = parser.parse_args()
    (train if arguments.what == "train" else measure)(arguments.data_root, arguments.out)


def train(data_root: Path, out: Path) -> None:
    common = ("--data-root", data_root, "--threads", 1, "--keep", 100, "--resume")
    steps = ("--lr-schedule", "constant", "--niter", 10, "--epoch-size", BASE_STEPS // 10)
    run(("train", "smmnist-1digit-det", "--log-dir", out / BASE, *steps, *common))
    init = ("--init", out / BASE / "checkpoints" / f"step-{BASE_STEPS:08d}.safetensors")
    commands = [("train", f"smmnist-1digit-{name}", "--log-dir", out / name, *init, *common) for name in MODELS]
    for first in range(0, len(commands), AT_ONCE):
        run(*commands[first : first + AT_ONCE])


def measure(data_root: Path, out: Path) -> None:
    """Each step is skipped whose result is there."""
    lp, det, fp, nonuniform = (newest(out / name) for name in MODELS)
    data = ("--data-root", data_root)
    clips, evaluation = out / "clips.npy", out / "evaluation"
    if not clips.exists():
        np.save(clips, aligned_clips(data_root))
    steps: list[tuple[Path, Sequence[object]]] = [
        (
            evaluation / "report.html",
            (
                "evaluate",
                lp,
                fp,
                det,
                "--clips",
                clips,
                "--n-clips",
                N_CLIPS,
                "--n-eval",
                N_FRAMES,
                "--out",
                evaluation,
            ),
        ),
        *(
            (out / f"trajectory-{name}.png", ("figure", "trajectory", model, *data))
            for name, model in (("lp", lp), ("lp-nonuniform", nonuniform), ("det", det))
        ),
        (out / "motion.png", ("figure", "motion", lp, fp, det, *data)),
        (out / "motion-nonuniform.png", ("figure", "motion", nonuniform, *data)),
        (out / "motion-by-step.png", ("figure", "motion", *by_step(out / "lp"), *data)),
        (out / "prior.png", ("figure", "prior", lp, *data)),
        (out / "samples.png", ("figure", "samples", lp, "--baseline", det, *data)),
    ]
    for result, command in steps:
        if not result.exists():
            run(command if command[0] == "evaluate" else (*command, "--out", result))
    for name in ("svg-lp", "svg-fp", "deterministic"):
        print(name, "; ".join(after_hit(evaluation / f"{name}.json")))


def newest(log_dir: Path) -> Path:
    return max((log_dir / "checkpoints").glob("step-*.safetensors"))


def by_step(log_dir: Path) -> list[object]:
    """Some of a run's checkpoints, evenly, with their names."""
    found = sorted((log_dir / "checkpoints").glob("step-*.safetensors"))
    chosen = [found[round(k)] for k in np.linspace(0, len(found) - 1, 5)]
    names = (f"step {int(path.stem.removeprefix('step-')):,}" for path in chosen)
    return [*chosen, *(part for name in names for part in ("--name", name))]


def aligned_clips(data_root: Path) -> np.ndarray:
    """(N, T, 64, 64) uint8: clips of the test digits that all meet their first wall at the same frame."""
    indices = find_first_hits(N_CLIPS, HIT - 1, HIT - 1, seed=SEED)
    data = MovingMNIST(load_digits(data_root, "test"), N_FRAMES, num_digits=1, seed=SEED, length=max(indices) + 1)
    return np.asarray(data.clips(indices).frames[:, :, 0].numpy())


def after_hit(path: Path) -> Iterator[str]:
    """The best samples' scores over the frames after the hit: their mean, and the mean of the frames' intervals."""
    found = load_json(path)
    for metric in ("ssim", "psnr"):
        best = found.curves[metric]["best"]
        mean, half = (np.mean(values[HIT - found.n_past :]) for values in (best.mean, best.interval))
        yield f"{metric} {mean:.4f} ± {half:.4f}"


def run(*commands: Sequence[object]) -> None:
    """Together; the first that fails ends it all, when the others are done."""
    lines = [["svg-fast", *map(str, command)] for command in commands]
    for line in lines:
        print(shlex.join(line), flush=True)
    processes = [subprocess.Popen([sys.executable, "-m", "svg_fast", *line[1:]]) for line in lines]
    codes = [process.wait() for process in processes]
    if any(codes):
        sys.exit("a command failed")


if __name__ == "__main__":
    main()
