"""Options of a training run together: pairs of them, those that exclude each other, and what the command line says."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from itertools import chain, combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from shard_files import random_clips, write_shards
from tiny_run import CONFIG, TRAINING, command, save
from torch import Tensor, nn

from svg_fast import SVG
from svg_fast.cli import cli, run
from svg_fast.training import Interrupted, TrainConfig, checkpoint, loop, report, train
from svg_fast.training.profile import MAX_STEPS
from svg_fast.training.setup import make_data
from svg_fast.training.step import TrainingStep

CPU = torch.device("cpu")
RUN = replace(TRAINING, epoch_size=3, batch_size=4, checkpoint_every=0, n_samples=1)  # two epochs
STEPS = RUN.niter * RUN.epoch_size


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than everything else here together; tests/test_training.py has them drawn."""
    monkeypatch.setattr(report, "loss_figure", lambda *paths: None)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with clips of noise: "many" of sixty sources, "one" of a single one; as many for the test."""
    root = tmp_path_factory.mktemp("shards")
    for name, count in (("many", 60), ("one", 1)):
        clips = random_clips(*[6] * (2 * count), size=64)
        train_clips = [(f"source {k}", clip) for k, clip in enumerate(clips[:count])]
        test_clips = [(f"test {k}", clip) for k, clip in enumerate(clips[count:])]
        write_shards(root / name, "videos", {"train": [train_clips], "test": [test_clips]})
    return root


def interrupt(patch: pytest.MonkeyPatch, *steps: int) -> None:
    """From now on SIGTERM comes in these steps of a run, counted by a call of `train`, one call after another."""
    batches, left = loop.batches, list(steps)

    def interrupted(*arguments: Any) -> Iterator[Tensor]:
        at = left.pop(0) if left else None
        for step, frames in enumerate(batches(*arguments), start=1):
            if step == at:
                signal.raise_signal(signal.SIGTERM)
            yield frames

    patch.setattr(loop, "batches", interrupted)


def last(log_dir: Path) -> checkpoint.Checkpoint:
    return checkpoint.load(checkpoint.find_all(log_dir / "checkpoints")[-1])


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


# Each pair of values of two columns is in a row, but for those that cannot be: free_bits with det or two parts.
COLUMNS = ("variant", "statistics", "accumulate", "beta", "lr", "also", "data")
ROWS = [
    ("lp", "running", 2, "constant", "constant", "ema", "epochs"),
    ("lp", "running", 1, "constant", "linear", "free_bits", "smmnist"),
    ("lp", "batch", 2, "constant", "linear", "early_stop", "smmnist"),
    ("lp", "running", 1, "warmup", "cosine", "free_bits", "independent"),
    ("lp", "running", 1, "warmup", "linear", "grad_clip", "epochs"),
    ("lp", "running", 1, "cyclical", "constant", "free_bits", "independent"),
    ("fp", "batch", 2, "constant", "linear", "early_stop", "independent"),
    ("fp", "batch", 2, "warmup", "cosine", "ema", "smmnist"),
    ("fp", "batch", 2, "cyclical", "constant", "grad_clip", "independent"),
    ("fp", "running", 1, "cyclical", "constant", "early_stop", "smmnist"),
    ("fp", "batch", 1, "cyclical", "cosine", "free_bits", "epochs"),
    ("det", "running", 1, "constant", "cosine", "grad_clip", "smmnist"),
    ("det", "running", 2, "warmup", "constant", "ema", "independent"),
    ("det", "batch", 1, "warmup", "cosine", "early_stop", "epochs"),
    ("det", "batch", 1, "cyclical", "linear", "ema", "independent"),
]
IMPOSSIBLE = {("det", "free_bits"), (2, "free_bits")}
# With these six steps no schedule is over before the interruptions, and each is felt.
SETTINGS: dict[tuple[str, Any], dict[str, Any]] = {
    ("beta", "warmup"): {"beta_schedule": "warmup", "beta_warmup": 5},
    ("beta", "cyclical"): {"beta_schedule": "cyclical", "beta_cycle": 4},
    ("lr", "constant"): {"lr_warmup": 5},
    ("lr", "cosine"): {"lr_schedule": "cosine", "lr_warmup": 3, "lr_min": 1e-4},
    ("lr", "linear"): {"lr_schedule": "linear", "lr_warmup": 3},
    ("also", "free_bits"): {"free_bits": 1e-4},
    ("also", "ema"): {"ema": 0.9},
    ("also", "grad_clip"): {"grad_clip": 1e-2},
    ("also", "early_stop"): {"early_stop": 1, "validate": 2},
    ("data", "epochs"): {"sampling": "epochs", "starts": "random", "mirror": True},
    ("data", "independent"): {"sampling": "independent", "starts": "first"},
}


def test_every_pair_of_options_is_in_a_row() -> None:
    values = [dict.fromkeys(column) for column in zip(*ROWS, strict=True)]
    for i, j in combinations(range(len(COLUMNS)), 2):
        wanted = set(product(values[i], values[j])) - IMPOSSIBLE
        assert {(row[i], row[j]) for row in ROWS} == wanted


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, row)))
def test_options_together_resume_as_undisturbed(
    row: tuple[Any, ...], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of three steps, interrupted in the middle of a warm-up or cycle and again in the second epoch."""
    variant, statistics, accumulate, *_, also, data = row
    config = replace(CONFIG, variant=variant, generation_statistics=statistics, beta=0.1)
    training = replace(RUN, accumulate=accumulate)
    if data != "smmnist":
        training = replace(training, dataset="videos", data_root=shards / "many", hold_out=0.3)
    for column in zip(COLUMNS, row, strict=True):
        training = replace(training, **SETTINGS.get(column, {}))

    pictures = train(config, training, tmp_path / "undisturbed")
    wanted = last(tmp_path / "undisturbed")
    assert pictures == tmp_path / "undisturbed" / "samples" / "epoch-002.gif"
    assert all(tensor.isfinite().all() for tensor in wanted.tensors.values())
    assert wanted.step == STEPS
    assert bool(wanted.average()) == (also == "ema")
    assert wanted.config == config
    assert wanted.training == training

    interrupt(monkeypatch, 2, 2)
    disturbed = tmp_path / "disturbed"
    for at in (2, 4):
        with pytest.raises(Interrupted):
            train(config, training, disturbed, resume=True)
        assert last(disturbed).step == at
    train(config, training, disturbed, resume=True)
    assert_same(last(disturbed).tensors, wanted.tensors)
    tables = {"losses.csv"} | ({"validation.csv"} if also == "early_stop" else set())
    for log_dir in (tmp_path / "undisturbed", disturbed):
        assert {path.name for path in log_dir.glob("*.csv")} == tables
        assert {path.name for path in (log_dir / "samples").iterdir()} == {
            f"epoch-{epoch:03d}.{kind}" for epoch in (1, 2) for kind in ("gif", "png")
        }
    for name in tables:
        assert (disturbed / name).read_text() == (tmp_path / "undisturbed" / name).read_text()
    starts = json.loads((disturbed / "run.json").read_text())["starts"]
    assert [start["status"] for start in starts] == ["interrupted", "interrupted", "finished"]
    assert [start["step"] for start in starts] == [2, 4, STEPS]


def test_a_plain_loop_with_the_same_options_reaches_the_same_parameters(tmp_path: Path) -> None:
    """Schedules, clipping and average written out for the six steps."""
    training = replace(RUN, lr=3e-3, lr_schedule="linear", lr_warmup=3, beta_schedule="warmup", beta_warmup=4)
    training = replace(training, grad_clip=0.05, ema=0.5)
    config = replace(CONFIG, beta=0.5)
    train(config, training, tmp_path)
    torch.manual_seed(training.seed)
    model = SVG(config)
    averages = {name: p.detach().clone() for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(training.seed)
    data = make_data(config, training).train
    adam = torch.optim.Adam(model.parameters(), fused=True)
    rates = (1e-3, 2e-3, 3e-3, 2e-3, 1e-3, 0.0)
    betas = (0.0, 0.125, 0.25, 0.375, 0.5, 0.5)
    for step, (rate, beta) in enumerate(zip(rates, betas, strict=True)):
        adam.param_groups[0]["lr"] = rate
        adam.zero_grad()
        out = model(data.clips(range(4 * step, 4 * step + 4)).frames, generator=generator)
        (out.mse + beta * out.kl).backward()
        assert nn.utils.clip_grad_norm_(model.parameters(), 0.05) > 0.05
        adam.step()
        decay = min(0.5, (1 + step) / (10 + step))
        for name, p in model.named_parameters():
            averages[name] = decay * averages[name] + (1 - decay) * p.detach()
    found = last(tmp_path)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found.parameters()[name], tensor, rtol=1e-6, atol=1e-8)
    for name, tensor in averages.items():
        torch.testing.assert_close(found.average()[name], tensor, rtol=1e-5, atol=1e-7)


MANY, ONE = Path("many"), Path("one")  # of the shards
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"free_bits": 0.1, "variant": "det"}, "free_bits are of a KL, which the deterministic model does not have"),
    ({"free_bits": 0.1, "accumulate": 2, "batch_size": 4}, "free_bits needs the KL of a step's clips at once"),
    ({"fsdp": True}, "fsdp needs several processes: start them with torchrun"),
    ({"cuda_graph": True}, "cuda_graph needs a GPU, got device 'cpu'"),
    ({"cuda_graph": True, "accumulate": 2, "batch_size": 4}, "cuda_graph needs accumulate = 1"),
    ({"cuda_graph": True, "compile": True}, "cuda_graph needs a step without compile and profile"),
    ({"cuda_graph": True, "profile": 2}, "cuda_graph needs a step without compile and profile"),
    ({"compile": True, "profile": 2}, "profile needs a model that is not compiled"),
    ({"profile": MAX_STEPS + 1}, f"profile must be of 0 to {MAX_STEPS} steps, got {MAX_STEPS + 1}"),
    ({"profile": -1}, "profile must not be negative, got -1"),
    ({"early_stop": 2}, "early_stop needs validate, a number of clips to take the bound of, got 0"),
    ({"lr_min": 1e-5}, "lr_min = 1e-05 needs lr_schedule cosine or linear, got constant"),
    ({"beta_warmup": 5}, "beta_warmup = 5 needs beta_schedule warmup, got constant"),
    ({"batch_size": 3, "accumulate": 2}, "batch_size must give every part of every process two clips (BatchNorm), got"),
    ({"precision": "bf16"}, "precision bf16 needs a GPU (a CPU is slower with it), got device 'cpu'"),
    ({"precision": "fp16"}, "precision fp16 needs a GPU (a CPU is slower with it), got device 'cpu'"),
    ({"tracker": "wandb"}, "tracker must be \"module:function\", got 'wandb'"),
    ({"tracker": "math:wandb"}, "tracker must be a function of the module 'math', which has no 'wandb'"),
    ({"tracker": "no_such:make"}, "tracker 'no_such:make' cannot be imported: No module named 'no_such'"),
    ({"validate": 1}, "validate must find two clips or more for batch statistics"),
    ({"mirror": True}, "sampling, starts, mirror and hold_out are of clips in shards, got them for smmnist"),
    ({"validate": 2, "dataset": "videos", "data_root": MANY}, "validate needs a hold_out of videos's training sources"),
    (
        {"dataset": "videos", "data_root": ONE, "hold_out": 0.5},
        "must hold more than one source, got hold_out = 0.5, which keeps all",
    ),
    (
        {"dataset": "videos", "data_root": MANY, "hold_out": 0.01, "validate": 9},
        "validate must find two clips or more for batch statistics (or set generation_statistics to running), got 1",
    ),
]


def typed(patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], log_dir: Path, change: dict[str, Any]) -> str:
    """What `svg-fast train` with the small settings and this change of them leaves with: its errors."""
    names = {name: f"--{name.replace('_', '-')}" for name in change}
    options = [(names[name],) if value is True else (names[name], str(value)) for name, value in change.items()]
    capsys.readouterr()  # what was said before
    patch.setattr("sys.argv", ["svg-fast", *command(log_dir, *chain(*options))[3:]])
    with pytest.raises(SystemExit) as leaving:
        run()
    assert leaving.value.code == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"), REFUSED, ids=["-".join(map(str, chain(*change.items()))) for change, _ in REFUSED]
)
def test_options_that_exclude_each_other(
    change: dict[str, Any],
    message: str,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One sentence, from Python and from the command line, before anything is written."""
    if "data_root" in change:
        change = change | {"data_root": shards / change["data_root"]}
    config = replace(CONFIG, variant=change.get("variant", "lp"))
    training = {name: value for name, value in change.items() if name != "variant"}
    with pytest.raises((ValueError, ImportError), match=re.escape(message)):
        train(config, replace(TRAINING, **training), tmp_path / "run")
    errors = typed(monkeypatch, capsys, tmp_path / "run", change)
    assert errors.startswith("Error: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_schedule_that_ends_with_the_run_fixes_its_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without one a longer run goes on (tests/test_training.py)."""
    training = replace(TRAINING, niter=1, epoch_size=1, lr_schedule="cosine")
    train(CONFIG, training, tmp_path)
    before = contents(tmp_path)
    message = "niter, which the lr_schedule ends with: 1, not 2"
    with pytest.raises(checkpoint.CheckpointError, match=message):
        train(CONFIG, replace(training, niter=2), tmp_path, resume=True)
    typed_again = {"niter": 2, "epoch_size": 1, "lr_schedule": "cosine", "resume": True}
    errors = typed(monkeypatch, capsys, tmp_path, typed_again)
    assert errors == f"Error: the checkpoint is of another configuration ({message})\n"
    assert contents(tmp_path) == before


def test_help_explains_every_option() -> None:
    text = CliRunner().invoke(cli, ["train", "--help"], terminal_width=120).output
    _, _, explained = text.partition("Show this message and exit.")
    words = set(re.findall(r"\w+", explained))
    assert [field.name for field in fields(TrainConfig) if field.name not in words] == []


def frames_of(step: int) -> Tensor:
    """The clips of a step (B, T, 1, 64, 64)."""
    shape = (RUN.batch_size, CONFIG.n_past + CONFIG.n_future, 1, 64, 64)
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(step), dtype=torch.uint8)


def make_step(training: TrainConfig) -> TrainingStep:
    """Of a new model; on a CPU, where only a run refuses half precision."""
    torch.manual_seed(0)
    model = SVG(replace(CONFIG, nf=4, g_dim=8, rnn_size=16, beta=0.01))
    adam = torch.optim.Adam(model.parameters(), training.lr, fused=True)
    return TrainingStep(model, adam, torch.Generator().manual_seed(1), training)


def test_a_tracker_never_comes_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module would be imported. None is written, and one in a file is not read."""
    step = make_step(replace(RUN, tracker="os:system"))
    step(frames_of(0))
    for step_number, is_in_file in ((1, False), (2, True)):
        if is_in_file:
            monkeypatch.setattr(checkpoint, "replace", lambda settings, **without: settings)
        path = save(tmp_path, step_number, step.model, step.optimizer, torch.Generator(), step.training, origin=0)
        assert (b"os:system" in path.read_bytes()) == is_in_file
        assert checkpoint.load(path).training.tracker is None


def gradients(precision: Any, part: str = "") -> Tensor:
    """Of one step, those of a part of the model in one vector; Adam leaves them without the loss's scale."""
    step = make_step(replace(RUN, precision=precision))
    step(frames_of(0))
    named = step.model.named_parameters()
    return torch.cat([p.grad.flatten() for name, p in named if name.startswith(part) and p.grad is not None])


@pytest.mark.parametrize(("precision", "rounding", "kinked"), [("bf16", 2**-8, 0.1), ("fp16", 2**-11, 0.1 / 8**0.5)])
def test_half_precision_has_float32s_gradients(precision: str, rounding: float, kinked: float) -> None:
    """To some roundings of the products in the prior, which is smooth. Elsewhere rounding takes values across the kink
    of LeakyReLU, a share of them that goes with it, and the norm of the error with its square root."""
    for part, tolerance in (("prior", 2 * rounding), ("", kinked)):
        wanted = gradients("float32", part)
        error = float((gradients(precision, part) - wanted).norm() / wanted.norm())
        assert 0 < error < tolerance


def scaled(patch: pytest.MonkeyPatch, scale: float) -> None:
    """Where fp16's scale of the loss begins."""
    patch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=scale))


@pytest.mark.parametrize("grad_clip", [0.0, 1e-3])
def test_a_step_that_overflows_is_left_out(grad_clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    scaled(monkeypatch, 2.0**40)
    step = make_step(replace(RUN, precision="fp16", grad_clip=grad_clip))
    before = {name: p.detach().clone() for name, p in step.model.named_parameters()}
    assert step(frames_of(0)).isfinite().all()
    assert_same(dict(step.model.named_parameters()), before)
    assert step.scaler.get_scale() == 2.0**39
    step.scaler.update(2.0**10)
    step(frames_of(1))
    assert all(not torch.equal(p, before[name]) for name, p in step.model.named_parameters())
    assert step.scaler.get_scale() == 2.0**10


def test_a_run_in_fp16_resumes_with_its_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which begins too high, and has come down where the run is interrupted."""
    monkeypatch.setattr(loop, "prepare_device", lambda training: CPU)
    scaled(monkeypatch, 2.0**28)
    training = replace(RUN, precision="fp16")
    train(CONFIG, training, tmp_path / "undisturbed")
    wanted = last(tmp_path / "undisturbed")
    interrupt(monkeypatch, 5)
    with pytest.raises(Interrupted):
        train(CONFIG, training, tmp_path / "run")
    assert 0 < last(tmp_path / "run").scaler["scale"] < 2.0**28
    train(CONFIG, training, tmp_path / "run", resume=True)
    found = last(tmp_path / "run")
    assert found.scaler == wanted.scaler
    assert_same(found.tensors, wanted.tensors)
    moved = [torch.equal(wanted.parameters()[name], p) for name, p in SVG(CONFIG).named_parameters()]
    assert not all(moved)


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",  # traces forward and backward, whole or not at all, and runs PyTorch's own kernels
        pytest.param(
            "inductor",
            marks=pytest.mark.skipif(
                "SVG_TEST_INDUCTOR" not in os.environ, reason="SVG_TEST_INDUCTOR is not set: a minute of C++"
            ),
        ),
    ],
)
def test_a_compiled_step_has_the_same_losses(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    compile_ = partial(torch.compile, backend=backend, fullgraph=True)
    monkeypatch.setattr(torch, "compile", lambda function, **_: compile_(function))
    steps = [make_step(replace(RUN, compile=compiled)) for compiled in (False, True)]
    for k in range(3):
        eager, compiled = (step(frames_of(k)) for step in steps)
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-7)
