"""Training survives killed workers, signals, full disks, damaged files; a loss that is no number ends all of it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import kill_workers
import pytest
import torch
import torch.distributed as dist
from kill_workers import EVERY, STEPS, assert_same, started
from processes import in_processes
from tiny_run import CONFIG, TRAINING, command
from torch import Tensor

from svg_fast import SVG, SVGConfig
from svg_fast.models import SVGOutput
from svg_fast.training import NonFiniteLoss, TrainConfig, checkpoint, loop, train
from svg_fast.training.checkpoint import Checkpoint
from svg_fast.training.processes import Processes
from svg_fast.training.signals import catch_signals

TWO = replace(TRAINING, niter=1, epoch_size=STEPS, batch_size=4, checkpoint_every=EVERY)  # as kill_workers has it
OFTEN = replace(TRAINING, checkpoint_every=1, keep=99)
LIMIT = 60.0  # seconds


def train_together(log_dir: Path, training: TrainConfig) -> str:
    """`train` by this process of the default group, with the others -> what ended it, or nothing."""

    @contextmanager
    def joined(_device: torch.device) -> Iterator[Processes]:
        yield Processes(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)

    pytest.MonkeyPatch().setattr(loop, "joined", joined)
    try:
        train(CONFIG, training, log_dir, resume=True)
    except NonFiniteLoss as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def undisturbed_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, which nobody disturbs."""
    log_dir = tmp_path_factory.mktemp("two")
    assert in_processes(2, train_together, log_dir, TWO) == ["", ""]
    return log_dir


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, and a checkpoint of every step."""
    log_dir = tmp_path_factory.mktemp("one")
    train(CONFIG, OFTEN, log_dir)
    return log_dir


def test_torchrun_starts_killed_workers_again_and_nothing_is_lost(undisturbed_two: Path, tmp_path: Path) -> None:
    """The one that survives is in a collective, and must not wait there for ever; nor torchrun for it."""
    with started(tmp_path / "run", restarts=1) as run:
        run.wait_for(3 * EVERY, LIMIT)
        killed, survivor = run.workers()
        kill_workers.kill(killed)
        began = time.monotonic()
        while survivor in run.workers():
            assert time.monotonic() - began < 20, "torchrun would end it by force after 30 seconds"
            time.sleep(0.01)
        assert run.wait(LIMIT) == 0, run.output()
        output = run.output()
    assert "resuming at step" in output
    assert "Traceback" not in output
    assert_same(tmp_path / "run", undisturbed_two)


def test_all_killed_then_a_time_limit(undisturbed_two: Path, tmp_path: Path) -> None:
    """SIGKILL for torchrun and its workers; then, as SLURM does it, SIGTERM for all, which torchrun passes on again."""
    log_dir = tmp_path / "run"
    with started(log_dir) as run:
        run.wait_for(2 * EVERY, LIMIT)
        run.kill()
    first = kill_workers.saved(log_dir)
    assert 0 < first < STEPS
    with started(log_dir, "--resume") as run:
        run.wait_for(first + EVERY, LIMIT)
        for process in (*run.workers(), run.process.pid):
            kill_workers.kill(process, signal.SIGTERM)
        assert run.wait(LIMIT) != 0
        assert run.output().count(f"SIGTERM: saved {log_dir}") == 1
        assert f"step-{kill_workers.saved(log_dir):08d}.safetensors; continue with --resume" in run.output()
    assert first < kill_workers.saved(log_dir) < STEPS
    kill_workers.finish(log_dir, LIMIT)
    assert_same(log_dir, undisturbed_two)


def test_a_second_signal_is_for_the_impatient_unless_a_scheduler_sent_it() -> None:
    previous = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("SIGTERM acts as before"))
    interrupts = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with catch_signals() as caught:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            assert caught == [signal.SIGTERM, signal.SIGTERM, signal.SIGINT]
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, previous)
        signal.signal(signal.SIGINT, interrupts)


def test_a_disk_that_fills_up_costs_the_checkpoint_it_was_full_for(tmp_path: Path) -> None:
    """The system refuses the next checkpoint's bytes from a random one on."""
    folder = tmp_path / "checkpoints"
    arguments = command(tmp_path, "--niter", "1", "--epoch-size", "300", "--checkpoint-every", "10")
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        while not checkpoint.find_all(folder) and process.poll() is None:
            time.sleep(0.002)
        size = checkpoint.find_all(folder)[0].stat().st_size
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (random.randrange(size // 2, size), size))
        _, errors = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert process.returncode == 1
    last = checkpoint.newest(folder)
    assert last is not None
    name = checkpoint.path_of(folder, last.step + 10)
    assert errors.rstrip().splitlines()[-1] == f"Error: {name}: File too large"
    assert "Traceback" not in errors
    assert not list(folder.glob(".*"))


def make_checkpoint(step: int, config: SVGConfig = CONFIG) -> Checkpoint:
    """Of a run whose parameters have not moved yet."""
    model = SVG(config)
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    tensors = checkpoint.snapshot(model, optimizer, torch.Generator())
    return Checkpoint(step, config, TRAINING, 5, tensors)


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Every write beyond this byte of a file fails, in this process."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def test_a_write_that_fails_at_any_byte_costs_no_other_checkpoint(tmp_path: Path) -> None:
    first, second = make_checkpoint(1), make_checkpoint(2)
    size = checkpoint.write(tmp_path, second, keep=1).stat().st_size  # the length of a checksum varies
    checkpoint.path_of(tmp_path, 2).unlink()
    checkpoint.write(tmp_path, first, keep=1)
    for limit in (0, 1, 7, 8, 9, *range(1024, size, size // 40), size - 1):
        writer = checkpoint.Writer(tmp_path, keep=1)
        with files_end_at(limit):
            writer.save(second)
            with pytest.raises(OSError, match=r"File too large: .*/step-00000002\.safetensors"):
                writer.wait()
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.safetensors"]
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert all(torch.equal(tensor, first.tensors[name]) for name, tensor in found.tensors.items())


def test_a_run_goes_on_after_a_write_that_failed(undisturbed: Path, tmp_path: Path) -> None:
    train(CONFIG, replace(OFTEN, niter=1), tmp_path)
    write = checkpoint.write

    def limited(folder: Path, run: Checkpoint, keep: int) -> Path:
        with files_end_at(100_000 if run.step == 9 else resource.RLIM_INFINITY):
            return write(folder, run, keep)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write", limited)
        with pytest.raises(OSError, match=r"File too large: .*/step-00000009\.safetensors"):
            train(CONFIG, OFTEN, tmp_path, resume=True)
    train(CONFIG, OFTEN, tmp_path, resume=True)
    assert_same_checkpoints(tmp_path, undisturbed)


def assert_same_checkpoints(log_dir: Path, undisturbed: Path) -> None:
    """Of every step, bit for bit."""
    paths, wanted = (checkpoint.find_all(run / "checkpoints") for run in (log_dir, undisturbed))
    assert [path.name for path in paths] == [path.name for path in wanted]
    assert len(paths) == OFTEN.niter * OFTEN.epoch_size
    for a, b in zip(map(checkpoint.load, paths), map(checkpoint.load, wanted), strict=True):
        assert a.step == b.step
        assert all(torch.equal(a.tensors[name], tensor) for name, tensor in b.tensors.items())


def test_slow_writes_hold_the_values_of_their_step(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters, Adam's state and running statistics change while a checkpoint waits to be written."""
    write = checkpoint.write

    def slow(folder: Path, run: Checkpoint, keep: int) -> Path:
        time.sleep(0.1)
        return write(folder, run, keep)

    monkeypatch.setattr(checkpoint, "write", slow)
    train(CONFIG, OFTEN, tmp_path)
    assert_same_checkpoints(tmp_path, undisturbed)


def test_an_error_in_the_background_is_raised_by_the_next_save_or_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    missing = tmp_path / "missing"
    run = make_checkpoint(1)
    with checkpoint.Writer(missing, keep=1) as writer:
        writer.save(run)
        with pytest.raises(FileNotFoundError, match="missing"):
            writer.save(run)
    with pytest.raises(FileNotFoundError, match="missing"), checkpoint.Writer(missing, keep=1) as writer:
        writer.save(run)
    writer = checkpoint.Writer(missing, keep=1)
    writer.save(run)
    writer.__exit__(NonFiniteLoss, NonFiniteLoss(), None)  # another error is on its way
    assert "the last checkpoint was not written: [Errno 2]" in caplog.text


def write_for_ever(folder: Path) -> None:
    run = make_checkpoint(0, replace(CONFIG, rnn_size=64))  # 2 MB, so that most of the time is writing
    while True:
        run = replace(run, step=run.step + 1)
        for tensor in run.tensors.values():
            if tensor.is_floating_point():
                tensor.fill_(run.step)
        checkpoint.write(folder, run, keep=2)


def test_a_writer_killed_at_any_moment_leaves_whole_checkpoints(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")  # that of tests/processes.py
    moments = random.Random(0)
    for number in range(8):
        folder = tmp_path / str(number)
        folder.mkdir()
        process = context.Process(target=write_for_ever, args=(folder,), daemon=True)
        process.start()
        while len(checkpoint.find_all(folder)) < 2:
            assert process.is_alive()
            time.sleep(0.002)
        time.sleep(moments.random() * 0.1)
        process.kill()
        process.join()
        paths = checkpoint.find_all(folder)
        assert 2 <= len(paths) <= 3  # the oldest may be about to go
        for path in paths:
            found = checkpoint.load(path)
            assert path == checkpoint.path_of(folder, found.step)
            assert all((t == found.step).all() for t in found.tensors.values() if t.is_floating_point())


def test_damage_anywhere_is_noticed_and_the_one_before_serves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Cut off at every kB, or a byte changed: in the header's every part, and in the values."""
    checkpoint.write(tmp_path, make_checkpoint(1), keep=2)
    path = checkpoint.write(tmp_path, make_checkpoint(2), keep=2)
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    metadata = data.index(b'"__metadata__"')
    changes = random.Random(0)
    damaged = [data[:size] for size in range(0, len(data), 1024)]
    damaged.append(data.replace(b'"F32"', b'"I32"', 1))
    for place in changes.sample([k for k in range(metadata, metadata + 2000) if chr(data[k]).isdigit()], 30):
        damaged.append(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])  # another digit
    for places in (range(8), range(metadata, metadata + 2000), range(header), range(header, len(data))):
        for place in changes.sample(places, min(len(places), 30)):
            other = data[place] ^ changes.randrange(1, 256)
            damaged.append(data[:place] + bytes([other]) + data[place + 1 :])
    for content in damaged:
        path.write_bytes(content)
        caplog.clear()
        found = checkpoint.newest(tmp_path)
        assert found is not None
        assert found.step == 1
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert record.message.startswith(str(path))
        assert record.message.endswith("; going on from the one before")


def test_a_damaged_file_of_a_later_step_takes_no_place(tmp_path: Path) -> None:
    """A run that was resumed behind it keeps what it has written since."""
    checkpoint.write(tmp_path, make_checkpoint(1), keep=1)
    checkpoint.path_of(tmp_path, 9).write_bytes(b"damaged")
    checkpoint.write(tmp_path, make_checkpoint(2), keep=1)
    assert [path.name for path in checkpoint.find_all(tmp_path)] == [f"step-0000000{k}.safetensors" for k in (2, 9)]
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 2


def test_the_newest_are_kept(tmp_path: Path) -> None:
    train(CONFIG, replace(TRAINING, checkpoint_every=1, keep=3), tmp_path)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [f"step-{n:08d}.safetensors" for n in (10, 11, 12)]


def train_broken(log_dir: Path, training: TrainConfig, where: str) -> str:
    """As above; in the second process the loss of step 8, or the gradient of one weight, is no number."""
    forward = SVG.forward
    calls: list[None] = []

    def broken(self: SVG, frames: Tensor, **noise: Any) -> SVGOutput:
        out = forward(self, frames, **noise)
        calls.append(None)
        if len(calls) != 8 or dist.get_rank() != 1:
            return out
        weight = self.frame_predictor.embed.weight[0, 0]
        return out._replace(mse=out.mse * torch.inf if where == "loss" else out.mse + (weight * 0).sqrt())

    pytest.MonkeyPatch().setattr(SVG, "forward", broken)
    return train_together(log_dir, training)


@pytest.mark.parametrize(("where", "fsdp"), [("loss", False), ("gradient", True)])
def test_a_loss_that_is_no_number_in_one_process_ends_all_of_them(tmp_path: Path, where: str, fsdp: bool) -> None:
    """With the same sentence. Of a sharded model one process alone holds the parameter that broke."""
    training = replace(TRAINING, batch_size=4, fsdp=fsdp)
    one, other = in_processes(2, train_broken, tmp_path, training, where, limit=LIMIT)
    assert one == other
    assert one.startswith("the loss is not finite at step 8: ")
    assert "first non-finite gradient" in one
    assert one.endswith(f"the last good checkpoint is {checkpoint.path_of(tmp_path / 'checkpoints', 6)}")
    last = checkpoint.newest(tmp_path / "checkpoints")
    assert last is not None
    assert all(tensor.isfinite().all() for tensor in last.parameters().values())
