"""The bound of held-out clips: what it is, of which clips and parameters, and the runs that it ends."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import OracleSVG
from shard_files import write_shards
from test_parity import pair
from test_training_options import interrupt, last
from tiny_run import CONFIG, TRAINING
from torch import Tensor
from torch.distributions import Normal

from svg_fast import SVG, SVGConfig, ops
from svg_fast.models.config import Statistics, Variant
from svg_fast.training import Interrupted, TrainConfig, checkpoint, loop, report, train
from svg_fast.training.data import make_clips
from svg_fast.training.setup import make_data
from svg_fast.training.validation import validate

CPU = torch.device("cpu")
RUN = replace(TRAINING, niter=3, epoch_size=2, checkpoint_every=0, n_samples=1, validate=4)


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than all the rest; tests/test_training.py has them drawn."""
    monkeypatch.setattr(report, "loss_figure", lambda *paths: None)


def oracles(config: SVGConfig, oracle: OracleSVG, groups: list[Tensor], statistics: Statistics, seed: int) -> Tensor:
    """Of all clips of the groups: their loss, and squared error, KL and log-likelihood of a step; means, (4,)."""
    oracle.train(statistics == "batch")
    sums = torch.zeros(4, dtype=torch.float64)
    variance = config.beta * config.channels * config.image_size**2 / 2
    for k, group in enumerate(groups):
        frames, steps = group.double() / 255, group.shape[1] - 1
        zeros = torch.zeros(steps, len(group), config.z_dim, dtype=torch.float64)
        eps = ops.gaussian_rsample(zeros, zeros, seed=torch.tensor([seed + k, 0]))
        with torch.no_grad():
            out = oracle(frames, eps)
        likelihood = Normal(out.prediction, variance**0.5).log_prob(frames[:, 1:]).sum((1, 2, 3, 4)).mean() / steps
        found = torch.stack((out.loss, out.mse_per_step.mean(), out.kl_per_step.mean(), likelihood))
        sums += found * len(group)
    return sums / sum(map(len, groups))


@pytest.mark.parametrize(("variant", "statistics"), [("lp", "batch"), ("lp", "running"), ("fp", None), ("det", None)])
def test_it_is_the_oracles(variant: Variant, statistics: Statistics | None) -> None:
    """Seven clips for a batch size of three: groups of four and three, each by its own batch statistics and noise."""
    config = replace(CONFIG, variant=variant, generation_statistics=statistics, beta=0.3, n_future=3)
    model, oracle = pair(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    clips = torch.randint(256, (7, 5, 1, 64, 64), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    training = replace(TRAINING, batch_size=3, seed=5)
    found = validate(model, clips, training, CPU)
    groups = [clips[:4], clips[4:]]
    loss, mse, kl, likelihood = oracles(config, oracle, groups, statistics or "running", training.seed).tolist()
    assert found == pytest.approx({"loss": loss, "mse": mse, "kl": kl, "elbo": likelihood - kl}, rel=1e-10, abs=1e-12)
    assert (found["kl"] == 0) == (variant == "det")
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_without_a_beta_there_is_no_bound() -> None:
    model = SVG(replace(CONFIG, beta=0.0))
    found = validate(model, torch.zeros(2, 4, 1, 64, 64, dtype=torch.uint8), TRAINING, CPU)
    assert math.isnan(found["elbo"])
    assert found["loss"] == pytest.approx(3 * found["mse"])


def test_the_average_is_validated_and_training_goes_on_with_the_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that validates reaches the parameters of one that does not, bit for bit."""
    seen: list[dict[str, Tensor]] = []

    def watched(model: SVG, *arguments: Any) -> dict[str, float]:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return validate(model, *arguments)

    monkeypatch.setattr(loop, "validate", watched)
    training = replace(RUN, ema=0.9, keep=3)
    train(CONFIG, training, tmp_path / "validates")
    train(CONFIG, replace(training, validate=0), tmp_path / "does not")
    validates, does_not = (checkpoint.find_all(tmp_path / name / "checkpoints") for name in ("validates", "does not"))
    assert len(seen) == len(validates) == len(does_not) == 3
    for state, one, other in zip(seen, map(checkpoint.load, validates), map(checkpoint.load, does_not), strict=True):
        assert one.tensors.keys() == other.tensors.keys()
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
        wanted = one.parameters() | one.average()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in state.items())
        moved = [name for name, tensor in one.average().items() if not torch.equal(one.parameters()[name], tensor)]
        assert len(moved) == len(one.average())
        found = validate(one.model(), make_validation(training), training, CPU)
        assert logged(tmp_path / "validates")[one.step] == pytest.approx(list(found.values()), rel=1e-8)


def make_validation(training: TrainConfig) -> Tensor:
    clips = make_data(CONFIG, training).validation
    assert clips is not None
    return clips


def logged(log_dir: Path) -> dict[int, list[float]]:
    """Rows of validation.csv by their step."""
    head, *rows = (log_dir / "validation.csv").read_text().splitlines()
    assert head == "step,loss,elbo,mse,kl"
    return {int(step): list(map(float, values)) for step, *values in (row.split(",") for row in rows)}


def test_clips_of_moving_mnist_are_others() -> None:
    """Than those trained on, and than the test's; of the training digits."""
    training = replace(RUN, validate=50)
    validation = {clip.numpy().tobytes() for clip in make_validation(training)}
    assert len(validation) == 50
    for part in ("train", "test"):
        clips = make_clips(CONFIG, training, part, 4).clips(range(500)).frames
        assert not validation & {clip.numpy().tobytes() for clip in clips}
    parts = {part: make_clips(CONFIG, training, part, 4) for part in ("train", "validation", "test")}
    prints = {part: clips.fingerprint() for part, clips in parts.items()}
    assert prints["validation"] == prints["train"] != prints["test"]


@pytest.mark.parametrize("sampling", ["epochs", "independent"])
def test_sources_held_out_of_shards_are_not_trained_on(sampling: Any, tmp_path: Path) -> None:
    """Twenty sources with two clips each, whose pixels tell the source; the test's are from 100 on."""

    def clips(first: int, count: int) -> list[tuple[str, Any]]:
        sources = range(first, first + count)
        return [(f"source {k}", np.full((n, 64, 64, 1), k, np.uint8)) for k in sources for n in (5, 7)]

    root = write_shards(tmp_path, "videos", {"train": [clips(0, 12), clips(12, 8)], "test": [clips(100, 3)]})
    training = replace(RUN, dataset="videos", data_root=root, hold_out=0.3, validate=99, sampling=sampling)

    def sources(frames: Tensor) -> set[int]:
        assert (frames == frames[:, :1, :1, :1, :1]).all()
        return set(frames[:, 0, 0, 0, 0].tolist())

    data = make_data(CONFIG, training)
    assert data.validation is not None
    held_out = sources(data.validation)
    assert len(data.validation) == 12  # the two clips of six sources
    assert len(held_out) == 6
    assert sources(data.train.clips(range(2000)).frames) == set(range(20)) - held_out
    assert sources(data.test) <= {100, 101, 102}
    other = make_data(CONFIG, replace(training, seed=9)).validation
    assert other is not None
    assert torch.equal(other, data.validation)


def test_a_table_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    """Rows of epochs that will come again are left out, as is half a row."""
    train(CONFIG, replace(RUN, keep=3), tmp_path)
    table = (tmp_path / "validation.csv").read_text()
    assert list(logged(tmp_path)) == [2, 4, 6]
    for path in checkpoint.find_all(tmp_path / "checkpoints")[1:]:
        path.unlink()
    with (tmp_path / "validation.csv").open("a") as file:
        file.write("8,0.1")
    train(CONFIG, RUN, tmp_path, resume=True)
    assert (tmp_path / "validation.csv").read_text() == table


@pytest.mark.parametrize("drawn", ["not begun", "half"])
def test_an_epoch_that_was_stopped_at_its_end_is_scored_once(
    drawn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal in its last step, or a crash between its score and its pictures."""
    train(CONFIG, RUN, tmp_path / "undisturbed")
    if drawn == "half":
        train(CONFIG, replace(RUN, niter=2), tmp_path / "run")
        (tmp_path / "run" / "samples" / "epoch-002.gif").unlink()
    else:
        interrupt(monkeypatch, 4)
        with pytest.raises(Interrupted):
            train(CONFIG, RUN, tmp_path / "run")
        assert list(logged(tmp_path / "run")) == [2]
    train(CONFIG, RUN, tmp_path / "run", resume=True)
    tables = [(tmp_path / name / "validation.csv").read_text() for name in ("run", "undisturbed")]
    assert tables[0] == tables[1]


# Epoch 3 is the best: a tie is no improvement, nor is what validation.csv cannot tell from one, since a resumed run
# would not see it. With a patience of three epochs, epoch 6 is the last.
PLANTED = (3.0, math.nan, 1.0, 2.0, 1.0, 1.0 - 1e-12, 0.5, 0.25)


def plant(patch: pytest.MonkeyPatch, losses: Iterator[float]) -> None:
    def planted(*arguments: Any) -> Mapping[str, float]:
        return {"loss": next(losses), "elbo": 0.0, "mse": 0.0, "kl": 0.0}

    patch.setattr(loop, "validate", planted)


def test_a_run_stops_when_its_loss_no_longer_falls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Undisturbed, interrupted within an epoch and at an epoch's end, and started again when it is over."""
    training = replace(RUN, niter=len(PLANTED), early_stop=3)
    for name, steps in (("undisturbed", ()), ("disturbed", (9, 1, 2))):
        with monkeypatch.context() as patch:
            plant(patch, iter(PLANTED))
            interrupt(patch, *steps)
            for _ in steps:
                with pytest.raises(Interrupted):
                    train(CONFIG, training, tmp_path / name, resume=True)
            for _ in range(2):
                pictures = train(CONFIG, training, tmp_path / name, resume=True)
                assert pictures.name == "epoch-006.gif"
                assert last(tmp_path / name).step == 12
                assert list(logged(tmp_path / name)) == [2, 4, 6, 8, 10, 12]
    found, wanted = (last(tmp_path / name).tensors for name in ("disturbed", "undisturbed"))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_more_patience_goes_on_with_a_run_that_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, iter((1.0, 2.0, 3.0)))
    train(CONFIG, replace(RUN, early_stop=1), tmp_path)
    assert last(tmp_path).step == 4
    train(CONFIG, replace(RUN, early_stop=2), tmp_path, resume=True)
    assert last(tmp_path).step == 6
