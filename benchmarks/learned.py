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
from functools import partial
from pathlib import Path

import numpy as np

from svg_fast.data import MovingMNIST, load_digits
from svg_fast.data.synchronised import find_first_hits
from svg_fast.evaluation.curves import draw_bound
from svg_fast.evaluation.results import Evaluation, load_json
from svg_fast.evaluation.sources import load_source
from svg_fast.evaluation.trajectory import compare_displacements

# A deterministic model with a constant learning rate, whose parameters all four models begin with.
BASE = "base"
BASE_STEPS = 2500
MODELS = ("lp", "det", "fp", "lp-nonuniform")
LONGER = "lp-longer"  # SVG-LP once more, from where it ended; the one that comes with the library
AT_ONCE = 2
SHOWN_STEPS = (500, 1500, 3000, 5000, 6500)

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
    steady = ("--init", newest(out / "lp"), "--beta-schedule", "constant", "--beta-warmup", 0)
    run(("train", "smmnist-1digit-lp", "--log-dir", out / LONGER, *steady, *common))


def measure(data_root: Path, out: Path) -> None:
    """Each step is skipped whose result is there."""
    lp, det, fp, nonuniform, longer = (newest(out / name) for name in (*MODELS, LONGER))
    names = [part for name in ("SVG-LP", "SVG-FP", "deterministic", "SVG-LP, longer") for part in ("--name", name)]
    data = ("--data-root", data_root)
    clips, evaluation = out / "clips.npy", out / "evaluation"
    if not clips.exists():
        np.save(clips, aligned_clips(data_root))
    fewer = ("--n-trajectories", 10, "--n-samples", 20)
    chosen = ("--clips", clips, "--n-clips", N_CLIPS, "--n-eval", N_FRAMES)
    steps: list[tuple[Path, Sequence[object]]] = [
        (evaluation / "report.html", ("evaluate", lp, fp, det, longer, *names, *chosen, "--out", evaluation)),
        (out / "trajectory-lp.png", ("figure", "trajectory", longer, *data)),
        (out / "trajectory-lp-nonuniform.png", ("figure", "trajectory", nonuniform, *data)),
        # as many futures: this model has one of each digit
        (out / "trajectory-det.png", ("figure", "trajectory", det, "--n-digits", 10_000, "--n-samples", 1, *data)),
        (out / "motion.png", ("figure", "motion", lp, fp, det, longer, *names, *data)),
        (out / "motion-by-step.png", ("figure", "motion", *by_step(out / "lp"), *fewer, *data)),
        (out / "prior.png", ("figure", "prior", longer, *data)),
        (out / "samples.png", ("figure", "samples", longer, "--baseline", det, *data)),
    ]
    for result, command in steps:
        if not result.exists():
            run(command if command[0] == "evaluate" else (*command, "--out", result))
    evaluations = [
        load_json(evaluation / f"{name}.json") for name in ("svg-lp", "svg-fp", "deterministic", "svg-lp-longer")
    ]
    draw_bound(evaluations, "elbo").savefig(out / "bound.png", dpi=150)
    for found in evaluations:
        print(f"{found.name}: {'; '.join(scores(found))}")
    for before in (0, 1):
        share = first_step(longer, data_root, before)
        print(
            f"SVG-LP, longer: first generated step, {before} before the hit: the mode is right in {share:.2f} of clips"
        )


def newest(log_dir: Path) -> Path:
    return max((log_dir / "checkpoints").glob("step-*.safetensors"))


def by_step(log_dir: Path) -> list[object]:
    """Checkpoints of a run, with their names."""
    paths = [log_dir / "checkpoints" / f"step-{step:08d}.safetensors" for step in SHOWN_STEPS]
    return [*paths, *(part for step in SHOWN_STEPS for part in ("--name", f"step {step:,}"))]


def aligned_clips(data_root: Path) -> np.ndarray:
    """(N, T, 64, 64) uint8: clips of the test digits that all meet their first wall at the same frame."""
    indices = find_first_hits(N_CLIPS, HIT - 1, HIT - 1, seed=SEED)
    data = MovingMNIST(load_digits(data_root, "test"), N_FRAMES, num_digits=1, seed=SEED, length=max(indices) + 1)
    return np.asarray(data.clips(indices).frames[:, :, 0].numpy())


def first_step(checkpoint: Path, data_root: Path, before: int) -> float:
    """The share of clips whose first generated step has the right mode, where it leads so many frames before a hit."""
    model, digits = load_source(checkpoint).model, load_digits(data_root, "test")
    frame = model.config.n_past + before  # of the hit, from 0
    compare = partial(compare_displacements, model, digits, n_digits=25, n_samples=20, n_future=1, seed=SEED)
    indices = find_first_hits(20, frame, frame, seed=SEED)
    return float(np.mean([compare(index=index).mode_share[0] for index in indices]))


def scores(found: Evaluation) -> Iterator[str]:
    """The best samples' means over the frames after the hit, with the mean of the frames' intervals; the bound."""
    for metric in ("ssim", "psnr"):
        best = found.curves[metric]["best"]
        mean, half = (np.mean(values[HIT - found.n_past :]) for values in (best.mean, best.interval))
        yield f"{metric} after the hit {mean:.4f} ± {half:.4f}"
    if found.bound is not None:
        kl = np.mean(found.bound.kl_per_step)
        yield f"bound {found.bound.elbo:.1f} nats a frame, KL {kl:.2f}, mse {np.mean(found.bound.mse_per_step):.5f}"


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
