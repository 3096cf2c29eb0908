"""Training runs: they write what they promise, survive SIGKILL and SIGTERM, and stop at a loss that is not finite."""

from __future__ import annotations

import math
import random
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_run import CONFIG, TRAINING, command, run
from torch import Tensor

from svg_fast import SVG
from svg_fast.evaluation.strips import make_rows
from svg_fast.models.config import Variant
from svg_fast.training import CheckpointError, NonFiniteLoss, checkpoint, load_model, train, training_preset
from svg_fast.training.setup import make_data

STEPS = TRAINING.niter * TRAINING.epoch_size


def tensors(log_dir: Path, step: int = STEPS) -> dict[str, Tensor]:
    return checkpoint.load(log_dir / "checkpoints" / f"step-{step:08d}.safetensors").tensors


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    log_dir = tmp_path_factory.mktemp("undisturbed")
    train(CONFIG, TRAINING, log_dir)
    return log_dir


def test_a_run_leaves_pictures_losses_scalars_and_checkpoints(undisturbed: Path) -> None:
    names = sorted(path.name for path in (undisturbed / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}.safetensors" for step in (STEPS - 2, STEPS)]
    rows = (undisturbed / "losses.csv").read_text().splitlines()
    assert rows[0] == "step,loss,mse,kl"
    assert [int(row.split(",")[0]) for row in rows[1:]] == list(range(1, STEPS + 1))
    assert list((undisturbed / "tensorboard").glob("events.*"))
    with Image.open(undisturbed / "samples" / "epoch-002.gif") as gif:
        assert gif.n_frames == TRAINING.n_eval  # type: ignore[attr-defined]
    with Image.open(undisturbed / "samples" / "epoch-002.png") as png:
        assert png.width > TRAINING.n_eval * CONFIG.image_size
    with Image.open(undisturbed / "losses.png") as png:
        assert png.width > 0


def test_a_plain_loop_reaches_the_same_parameters(undisturbed: Path) -> None:
    """The loop adds nothing to the equations: Adam on the model's loss over the data set's clips in order."""
    torch.manual_seed(TRAINING.seed)
    model = SVG(CONFIG)
    optimizer = torch.optim.Adam(model.parameters(), lr=TRAINING.lr, fused=True)
    generator = torch.Generator().manual_seed(TRAINING.seed)
    data = make_data(CONFIG, TRAINING).train
    for step in range(STEPS):
        frames = torch.stack([data[step * TRAINING.batch_size + k] for k in range(TRAINING.batch_size)])
        optimizer.zero_grad()
        model(frames, generator=generator).loss.backward()
        optimizer.step()
    trained = tensors(undisturbed)
    assert all(torch.equal(trained[f"model.{name}"], value) for name, value in model.state_dict().items())


def test_resuming_a_finished_run_changes_nothing_and_draws_its_samples_again(undisturbed: Path) -> None:
    before = tensors(undisturbed)
    (undisturbed / "samples" / "epoch-002.gif").unlink()
    assert train(CONFIG, TRAINING, undisturbed, resume=True).exists()
    assert_same(tensors(undisturbed), before)


def test_a_longer_run_goes_on_where_a_shorter_one_ended(undisturbed: Path, tmp_path: Path) -> None:
    train(CONFIG, replace(TRAINING, niter=1), tmp_path)
    train(CONFIG, TRAINING, tmp_path, resume=True)
    assert_same(tensors(tmp_path), tensors(undisturbed))
    assert (tmp_path / "losses.csv").read_text() == (undisturbed / "losses.csv").read_text()


@pytest.mark.parametrize("seed", range(3))
def test_killed_anywhere_and_resumed_is_bit_for_bit_the_undisturbed_run(
    undisturbed: Path, tmp_path: Path, seed: int
) -> None:
    """SIGKILL at random moments, from before the first checkpoint to after the last, until one run gets through."""
    moments = random.Random(seed)
    ends = []
    for _ in range(3):
        process = subprocess.Popen(command(tmp_path, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        steps = moments.randrange(STEPS)
        while process.poll() is None and logged(tmp_path) < steps:
            time.sleep(0.002)
        time.sleep(moments.random() * 0.05)
        process.kill()
        ends.append(process.wait())
    assert -signal.SIGKILL in ends
    assert run(tmp_path, "--resume").returncode == 0
    assert_same(tensors(tmp_path), tensors(undisturbed))


def logged(log_dir: Path) -> int:
    """The newest step that a running process has saved."""
    saved = checkpoint.find_all(log_dir / "checkpoints")
    return int(saved[-1].stem.removeprefix("step-")) + 1 if saved else 0


LONGER = ("--niter", "1", "--checkpoint-every", "0", "--epoch-size", "300")


@pytest.fixture(scope="module")
def undisturbed_longer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    log_dir = tmp_path_factory.mktemp("longer")
    assert run(log_dir, *LONGER).returncode == 0
    return log_dir


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(undisturbed_longer: Path, tmp_path: Path, signum: signal.Signals) -> None:
    process = subprocess.Popen(command(tmp_path, *LONGER), stderr=subprocess.PIPE, text=True)
    csv = tmp_path / "losses.csv"
    while not csv.exists():
        time.sleep(0.05)
        assert process.poll() is None
    time.sleep(0.5)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert f"{signum.name}: saved {tmp_path}" in errors
    assert "continue with --resume" in errors
    assert "Traceback" not in errors
    (saved,) = checkpoint.find_all(tmp_path / "checkpoints")
    assert 1 <= checkpoint.load(saved).step < 300
    assert run(tmp_path, *LONGER, "--resume").returncode == 0
    assert_same(tensors(tmp_path, 300), tensors(undisturbed_longer, 300))
    assert (tmp_path / "losses.csv").read_text() == (undisturbed_longer / "losses.csv").read_text()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(CONFIG, replace(TRAINING, niter=1), tmp_path)
    forward = SVG.forward
    calls: list[None] = []

    def explode(self: SVG, *args: Tensor, **options: torch.Generator) -> object:
        out = forward(self, *args, **options)  # type: ignore[arg-type]
        calls.append(None)
        return out._replace(mse=out.mse * (torch.inf if len(calls) == 2 else 1))

    monkeypatch.setattr(SVG, "forward", explode)
    with pytest.raises(
        NonFiniteLoss, match=r"not finite at step 8: .*smaller --lr.*last good checkpoint is .*00000006"
    ):
        train(CONFIG, TRAINING, tmp_path, resume=True)
    assert all(tensor.isfinite().all() for tensor in tensors(tmp_path, 6).values() if tensor.is_floating_point())


def test_an_interrupted_save_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(CONFIG, replace(TRAINING, niter=1), tmp_path)
    before = sorted(path.name for path in tmp_path.rglob("*"))

    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: .*step-00000008\.safetensors"):
        train(CONFIG, TRAINING, tmp_path, resume=True)
    monkeypatch.undo()
    assert [n for n in sorted(p.name for p in tmp_path.rglob("*")) if not n.startswith("events")] == [
        n for n in before if not n.startswith("events")
    ]
    train(CONFIG, TRAINING, tmp_path, resume=True)


def test_resuming_mends_what_a_crash_left(undisturbed: Path, tmp_path: Path) -> None:
    """Half a row in losses.csv, a half-written checkpoint's folder, pictures that were never drawn."""
    train(CONFIG, replace(TRAINING, niter=1), tmp_path)
    with (tmp_path / "losses.csv").open("a") as csv:
        csv.write("\n7,0.1,\xff\n8")
    (tmp_path / "checkpoints" / ".writing-abc").mkdir()
    (tmp_path / "samples" / "epoch-001.gif").unlink()
    train(CONFIG, TRAINING, tmp_path, resume=True)
    assert_same(tensors(tmp_path), tensors(undisturbed))
    assert (tmp_path / "losses.csv").read_text() == (undisturbed / "losses.csv").read_text()
    assert (tmp_path / "samples" / "epoch-001.gif").exists()
    assert not (tmp_path / "checkpoints" / ".writing-abc").exists()


def test_a_damaged_checkpoint_costs_no_more_than_the_steps_since_the_one_before(
    undisturbed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    train(CONFIG, TRAINING, tmp_path)
    before, newest = checkpoint.find_all(tmp_path / "checkpoints")
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    train(CONFIG, TRAINING, tmp_path, resume=True)
    assert "step-00000012.safetensors is damaged: its values have another checksum; going on" in caplog.text
    assert "resuming at step 10" in caplog.text
    assert_same(tensors(tmp_path), tensors(undisturbed))
    for path in (before, newest):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"step-00000012\.safetensors is truncated"):
        train(CONFIG, TRAINING, tmp_path, resume=True)


@pytest.mark.parametrize("variant", ["fp", "det"])
def test_the_other_variants_train(variant: Variant, tmp_path: Path) -> None:
    assert train(replace(CONFIG, variant=variant), replace(TRAINING, niter=1), tmp_path).exists()


def test_strips_show_the_best_sample_and_leave_the_model_alone() -> None:
    torch.manual_seed(0)
    model = SVG(CONFIG)
    for parameter in (*model.frame_predictor.parameters(), *model.decoder.parameters()):
        parameter.data.mul_(10)  # samples that differ
    frames = torch.rand(3, 5, 1, 64, 64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    truth, best, *rest = make_rows(model, frames, n_samples=6, seed=0)
    assert [row.label for row in (truth, best, *rest)] == ["truth", "best of 6", "random 1", "random 2", "posterior"]
    assert [row.n_given for row in (truth, best, *rest)] == [5, 2, 2, 2, 2]

    samples = model.sample(frames[:, :2], 3, 6, seed=0)

    def psnr(video: Tensor, clip: int) -> float:
        """Mean over the predicted frames, in dB."""
        errors = [float((video[t] - frames[clip, t]).square().mean()) for t in range(2, 5)]
        return sum(10 * math.log10(1 / error) for error in errors) / len(errors)

    for clip in range(3):
        scores = [psnr(video[clip], clip) for video in samples]
        assert max(scores) - min(scores) > 1e-3
        assert psnr(best.frames[clip], clip) == pytest.approx(max(scores), abs=1e-6)
    posterior = model.infer(frames).posterior
    assert posterior is not None
    torch.testing.assert_close(rest[-1].frames, model.sample(frames[:, :2], 3, z=posterior[0].unsqueeze(1))[0])
    model.load_state_dict(before)
    make_rows(model, frames, n_samples=2, seed=0)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_run_is_not_overwritten(undisturbed: Path) -> None:
    with pytest.raises(
        ValueError, match=r"already holds a run \(step-00000012.safetensors\); give --resume or another"
    ):
        train(CONFIG, TRAINING, undisturbed)


def test_resuming_with_other_settings_names_them(undisturbed: Path) -> None:
    with pytest.raises(CheckpointError, match=r"another configuration \(beta: 0.0001, not 0.5; lr: 0.002, not 0.1\)"):
        train(replace(CONFIG, beta=0.5), replace(TRAINING, lr=0.1), undisturbed, resume=True)


def test_a_trained_model_loads_from_its_checkpoint(undisturbed: Path) -> None:
    model = load_model(undisturbed / "checkpoints" / f"step-{STEPS:08d}.safetensors")
    assert model.config == CONFIG
    assert not model.training
    trained = tensors(undisturbed)
    assert all(torch.equal(trained[f"model.{name}"], value) for name, value in model.state_dict().items())


def test_settings_of_the_paper() -> None:
    paper = training_preset("smmnist-lp")
    assert (paper.lr, paper.batch_size, paper.epoch_size, paper.niter) == (2e-3, 100, 600, 300)
    assert training_preset("kth-fp").lr == 8e-4
    with pytest.raises(ValueError, match="kth needs --data-root, a folder that `svg-fast data convert kth` made"):
        train(CONFIG, training_preset("kth-fp"), Path("unused"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"motion": "circular"}, "motion must be one of uniform, nonuniform, deterministic, got 'circular'"),
        ({"precision": "fp8"}, "precision must be one of float32, bf16, fp16, got 'fp8'"),
        ({"download": True}, "download needs a data_root"),
        ({"download": True, "data_root": Path("x"), "dataset": "kth"}, "download fetches MNIST, got the data set kth"),
        ({"checkpoint_every": -1}, "checkpoint_every must not be negative, got -1"),
        ({"seed": 2**63}, "seed must be below 2\\*\\*63 - 1, got 9223372036854775808"),
    ],
)
def test_wrong_settings(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TRAINING, **change)  # type: ignore[arg-type]
