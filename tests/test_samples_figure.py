"""The `samples` figure shows the frames that it says it shows, with edges that tell given from generated ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor

from svg_fast import SVG, SVGConfig
from svg_fast.evaluation.samples import samples_figure
from svg_fast.evaluation.strips import GENERATED, GIVEN
from svg_fast.models import generation
from svg_fast.models.generation import SampleOptions

Pixels = npt.NDArray[np.uint8]
CONFIG = SVGConfig(nf=4, g_dim=6, z_dim=3, rnn_size=8, n_past=2, n_future=2)
CLIPS, FRAMES, SAMPLES = 2, 5, 5
RANDOM = ["random 1", "random 2", "random 3"]


def make_model(**change: Any) -> SVG:
    torch.manual_seed(0)
    model = SVG(replace(CONFIG, **change))
    for parameter in model.frame_predictor.parameters():
        parameter.data.mul_(30)  # samples that differ
    return model


def clips() -> Tensor:
    return torch.rand(CLIPS, FRAMES, 1, 64, 64, generator=torch.Generator().manual_seed(1))


def read(path: Path) -> dict[str, Pixels]:
    with np.load(path) as file:
        return dict(file)


def cells(picture: Image.Image, scale: int = 1) -> list[tuple[tuple[int, int, int], Pixels]]:
    """Colour of the edge, two pixels wide, and the pixels (64, 64, 3) of every frame found, row by row."""
    side = 64 * scale
    image = np.pad(np.asarray(picture.convert("RGB")).astype(int), ((1, 0), (1, 0), (0, 0)), constant_values=255)
    light, found = image.min(axis=2) > 200, []
    for tint in (GIVEN, GENERATED):
        edge = np.abs(image - tint).max(axis=2) < 25  # a GIF's palette has 256 colours
        corner = edge[1:, 1:] & light[:-1, 1:] & light[1:, :-1]
        for y, x in (np.argwhere(corner) + 1).tolist():
            block = edge[y : y + side + 4, x : x + side + 4]
            if block[:2].all() and block[-2:].all() and block[:, :2].all() and block[:, -2:].all():
                inside = image[y + 2 : y + 2 + side : scale, x + 2 : x + 2 + side : scale]
                found.append((y, x, tint, inside.astype(np.uint8)))
    return [(tint, inside) for _, _, tint, inside in sorted(found, key=lambda cell: cell[:2])]


def uint8(frames: Tensor) -> Pixels:
    return (frames * 255).round().to(torch.uint8).numpy()


@pytest.mark.parametrize("best_by", ["ssim", "psnr"])
def test_rows_are_the_models_samples(best_by: Literal["ssim", "psnr"], tmp_path: Path) -> None:
    model, baseline, frames = make_model(), make_model(variant="det"), clips()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    samples_figure(tmp_path / "s.png", model, frames, SAMPLES, seed=3, baseline=baseline, best_by=best_by)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.gif", "s.npz", "s.png"]
    rows = read(tmp_path / "s.npz")
    assert list(rows) == ["truth", "deterministic", f"best of {SAMPLES}", *RANDOM]
    np.testing.assert_array_equal(rows["truth"], uint8(frames))
    given, n_future = frames[:, :2], FRAMES - 2
    np.testing.assert_array_equal(rows["deterministic"], uint8(baseline.sample(given, n_future)[0]))
    samples = model.sample(given, n_future, SAMPLES, seed=3)
    for k, name in enumerate(RANDOM):
        np.testing.assert_array_equal(rows[name], uint8(samples[k]))

    def score(k: int, clip: int) -> float:
        """Mean over the predicted frames by scikit-image, or minus the mean of log mse."""
        pairs = [(samples[k, clip, t, 0].numpy(), frames[clip, t, 0].numpy()) for t in range(2, FRAMES)]
        if best_by == "ssim":
            return float(np.mean([structural_similarity(a, b, data_range=1) for a, b in pairs]))
        return float(np.mean([-np.log10(np.mean((a.astype(float) - b) ** 2)) for a, b in pairs]))

    for clip in range(CLIPS):
        scores = [score(k, clip) for k in range(SAMPLES)]
        best = int(np.argmax(scores))
        np.testing.assert_array_equal(rows[f"best of {SAMPLES}"][clip], uint8(samples[best, clip]))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_picture_shows_the_rows_at_the_chosen_times(tmp_path: Path) -> None:
    times = [1, 2, 4]
    samples_figure(tmp_path / "s.png", make_model(), clips(), SAMPLES, seed=3, times=times, n_random=1)
    rows = read(tmp_path / "s.npz")
    found = cells(Image.open(tmp_path / "s.png"))
    wanted = [
        (GIVEN if name == "truth" or t <= 2 else GENERATED, row[clip, t - 1])
        for clip in range(CLIPS)
        for name, row in rows.items()
        for t in times
    ]
    assert len(found) == len(wanted) == CLIPS * 3 * 3
    for (colour, pixels), (wanted_colour, frame) in zip(found, wanted, strict=True):
        assert colour == wanted_colour
        np.testing.assert_array_equal(pixels, np.broadcast_to(frame.transpose(1, 2, 0), (64, 64, 3)))


def test_the_animation_plays_all_frames_from_green_to_red(tmp_path: Path) -> None:
    levels = torch.arange(CLIPS * FRAMES).view(CLIPS, FRAMES, 1, 1, 1) / (CLIPS * FRAMES)
    frames = (levels + torch.rand(3, 1, 1) / 20).expand(-1, -1, -1, 64, 64)
    samples_figure(tmp_path / "s.png", make_model(channels=3), frames, 2, seed=3, n_random=1)
    rows = read(tmp_path / "s.npz")
    gif: Any = Image.open(tmp_path / "s.gif")
    assert (gif.n_frames, gif.info["loop"]) == (FRAMES, 0)
    for t in range(FRAMES):
        gif.seek(t)
        found = cells(gif, scale=2)
        assert len(found) == CLIPS * len(rows)
        wanted = [(name, row[clip, t].transpose(1, 2, 0)) for clip in range(CLIPS) for name, row in rows.items()]
        for (colour, pixels), (name, frame) in zip(found, wanted, strict=True):
            assert colour == (GIVEN if t < 2 or name == "truth" else GENERATED)
            assert np.abs(pixels.astype(int) - frame).mean() < 5  # the levels are 25 apart


def test_many_samples_are_drawn_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best of the chunks is the best of all, and random samples may come from several."""
    model, frames = make_model(), clips()
    samples = model.sample(frames[:, :2], FRAMES - 2, SAMPLES, seed=3)
    monkeypatch.setattr(generation, "chunk_size", lambda *_, **__: (2, CLIPS, CLIPS))
    samples_figure(tmp_path / "s.png", model, frames, SAMPLES, seed=3, best_by="psnr")
    rows = read(tmp_path / "s.npz")
    assert list(rows) == ["truth", f"best of {SAMPLES}", *RANDOM]
    errors = (samples - frames)[:, :, 2:].square().mean(dim=(3, 4, 5)).log10().mean(dim=2)
    best = samples[errors.argmin(dim=0), torch.arange(CLIPS)]
    for name, frames_of in (*zip(RANDOM, samples, strict=False), (f"best of {SAMPLES}", best)):
        assert np.abs(rows[name].astype(int) - uint8(frames_of)).max() <= 1  # a level, where chunks round otherwise


def test_options_of_sampling_hold_for_the_model_and_the_baseline(tmp_path: Path) -> None:
    model, baseline, frames = make_model(), make_model(variant="det"), clips()
    for net in (model, baseline):
        for name, buffer in net.named_buffers():
            if name.endswith("running_var"):
                buffer.mul_(0.1)  # so that it matters which statistics are taken
    sampling: SampleOptions = {"statistics": "running", "temperature": 0.5}
    samples_figure(
        tmp_path / "s.png", model, frames, 2, seed=3, baseline=baseline, n_random=2, n_past=3, sampling=sampling
    )
    rows, given, n_future = read(tmp_path / "s.npz"), frames[:, :3], FRAMES - 3
    samples = model.sample(given, n_future, 2, seed=3, statistics="running", temperature=0.5)
    for k in range(2):
        np.testing.assert_array_equal(rows[f"random {k + 1}"], uint8(samples[k]))
    predicted = baseline.sample(given, n_future, statistics="running")[0]
    np.testing.assert_array_equal(rows["deterministic"], uint8(predicted))


def test_columns_by_default(tmp_path: Path) -> None:
    frames = torch.rand(CLIPS, 30, 1, 64, 64)
    samples_figure(tmp_path / "s.png", make_model(variant="det"), frames, seed=0)
    rows = read(tmp_path / "s.npz")
    assert list(rows) == ["truth", "predicted"]
    found = cells(Image.open(tmp_path / "s.png"))
    assert len(found) == CLIPS * 2 * 12
    shown = [next(t for t in range(30) if (rows["truth"][0, t, 0] == cell[..., 0]).all()) + 1 for _, cell in found[:12]]
    assert shown[:3] == [1, 2, 3]
    assert shown[-1] == 30
    assert np.ptp(np.diff(shown[2:])) <= 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("s.gif", {}, r"path must end in \.png, got 's\.gif'"),
        ("s.png", {"times": [0, 1]}, r"times must be one or more of the frames 1 to 5, got \[0, 1\]"),
        ("s.png", {"times": [6]}, r"1 to 5, got \[6\]"),
        ("s.png", {"times": []}, r"1 to 5, got \[\]"),
        ("s.png", {"best_by": "fvd"}, "best_by must be ssim or psnr, got 'fvd'"),
        ("s.png", {"baseline": SVG(CONFIG)}, r"baseline must be a deterministic model \(det\), got lp"),
        ("s.png", {"n_samples": 0}, "n_samples must be at least 1, got 0"),
        ("s.png", {"frames": torch.rand(CLIPS, 2, 1, 64, 64)}, "n_future must be at least 1, got 0"),
        ("s.png", {"frames": torch.rand(CLIPS, FRAMES, 3, 64, 64)}, r"frames must be \(B, T, 1, 64, 64\)"),
    ],
)
def test_wrong_use_leaves_nothing_behind(name: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"frames": clips(), "n_samples": 2, "seed": 0} | options
    with pytest.raises(ValueError, match=message):
        samples_figure(tmp_path / name, make_model(), **arguments)
    assert not list(tmp_path.iterdir())
