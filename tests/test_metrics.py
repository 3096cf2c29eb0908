"""PSNR and SSIM against scikit-image and SciPy in float64, one channel of one frame after another."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.signal import convolve2d
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from svg_fast.evaluation import metrics
from svg_fast.evaluation.metrics import frame_scores, psnr, ssim

CLIPS = Path(__file__).resolve().parents[2] / "shared" / "data" / "video" / "bair_kth_clips.npz"
FLOAT32, FLOAT64 = 1e-6, 1e-10

Plane = npt.NDArray[np.float64]


def finn_ssim(x: Plane, y: Plane) -> float:
    """From its definition."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    mean_x, mean_y, xx, yy, xy = (convolve2d(map_, window, mode="valid") for map_ in (x, y, x * x, y * y, x * y))
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    variances = xx - mean_x**2 + yy - mean_y**2
    score = float(np.mean(luminance * (2 * (xy - mean_x * mean_y) + c2) / (variances + c2)))
    return -1.0 if math.isnan(score) else score


ORACLES: dict[str, Callable[[Plane, Plane], float]] = {
    "psnr": lambda x, y: peak_signal_noise_ratio(y, x, data_range=1),
    "ssim": lambda x, y: structural_similarity(x, y, data_range=1),
    "ssim_published": lambda x, y: structural_similarity(x, y, data_range=2),
    "ssim_finn": finn_ssim,
}


def oracle(name: str, prediction: Tensor, truth: Tensor) -> Tensor:
    """(..., C, H, W) -> (...), in float64."""
    x, y = (tensor.double().flatten(0, -3).numpy() for tensor in torch.broadcast_tensors(prediction, truth))
    scores = torch.tensor([ORACLES[name](a, b) for a, b in zip(x, y, strict=True)], dtype=torch.float64)
    return scores.view(prediction.shape[:-2]).mean(dim=-1)


def scores_of(name: str, prediction: Tensor, truth: Tensor) -> Tensor:
    forms: dict[str, Any] = {"ssim": "skimage", "ssim_published": "published", "ssim_finn": "finn"}
    return psnr(prediction, truth) if name == "psnr" else ssim(prediction, truth, forms[name])


def assert_close(got: Tensor, want: Tensor, bound: float) -> None:
    """To within `bound`, of the figure where it is larger than one: PSNR is in tens of dB."""
    torch.testing.assert_close(got.double(), want, rtol=bound, atol=bound)


def flat(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None, None, None].expand(-1, 1, 64, 64)


def halves(above: float, below: float) -> Tensor:
    return torch.cat((flat(above)[..., :32, :], flat(below)[..., 32:, :]), dim=-2)


def frames(situation: str) -> tuple[Tensor, Tensor]:
    """Prediction and truth, (N, C, H, W) in float64."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    noise = torch.randn(3, 1, 64, 64, generator=generator, dtype=torch.float64)
    smooth = torch.nn.functional.interpolate(uniform(3, 1, 9, 9), (64, 64), mode="bicubic").clamp(0, 1)
    return {
        "unrelated": lambda: (uniform(4, 1, 64, 64), uniform(4, 1, 64, 64)),
        "colour": lambda: (uniform(2, 3, 64, 64), uniform(2, 3, 64, 64)),
        "odd sizes": lambda: (uniform(2, 3, 33, 47), uniform(2, 3, 33, 47)),
        "one window": lambda: (uniform(2, 1, 11, 11), uniform(2, 1, 11, 11)),
        "128": lambda: (uniform(2, 1, 128, 128), uniform(2, 1, 128, 128)),
        "constant": lambda: (flat(0.9, 0.6, 0.123, 1, 0, 0.5), flat(0.6, 0.2, 0.923, 0, 0.3, 0.5001)),
        "nearly constant": lambda: (flat(0.9, 0.6, 0.3) + 0.003 * noise, flat(0.6, 0.7, 0.9) - 0.003 * noise),
        "nearly identical": lambda: (smooth * (1 - 1e-4), smooth),
        "noisy": lambda: ((smooth + 0.01 * noise).clamp(0, 1), smooth),
        "dim": lambda: (0.3 * smooth + 0.6, smooth),
        "negative": lambda: (1 - smooth, smooth),
        "saturated": lambda: (uniform(3, 1, 64, 64).round(), smooth.round()),
        "flat halves": lambda: (halves(0.85, 0.15), halves(0.7, 0.3)),
    }[situation]()


SITUATIONS = [
    *("unrelated", "colour", "odd sizes", "one window", "128", "constant", "nearly constant", "nearly identical"),
    *("noisy", "dim", "negative", "saturated", "flat halves"),
]


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_against_the_oracle(situation: str, name: str) -> None:
    prediction, truth = frames(situation)
    assert_close(scores_of(name, prediction, truth), oracle(name, prediction, truth), FLOAT64)
    prediction, truth = prediction.float(), truth.float()
    scores = scores_of(name, prediction, truth)
    assert scores.dtype == torch.float32
    assert_close(scores, oracle(name, prediction, truth), FLOAT32)


@pytest.mark.skipif(not CLIPS.exists(), reason="the real clips are not here")
@pytest.mark.parametrize("name", ORACLES)
def test_real_frames(name: str) -> None:
    """Colour clips of both data sets: a later frame as a prediction, sharp and blurred."""
    with np.load(CLIPS) as clips:
        video = torch.stack([torch.from_numpy(clips[clip][:5:4]) for clip in clips.files])
    truth, later = (video.permute(1, 0, 4, 2, 3).float() / 255).unbind()
    blurred = torch.nn.functional.avg_pool2d(later, 5, 1, 2)
    prediction = torch.stack((later, blurred))
    assert_close(scores_of(name, prediction, truth), oracle(name, prediction, truth), FLOAT32)


@pytest.mark.parametrize("name", ORACLES)
def test_identical_frames(name: str) -> None:
    frame = torch.rand(2, 3, 64, 64)
    assert (scores_of(name, frame, frame.clone()) == (math.inf if name == "psnr" else 1)).all()


@pytest.mark.parametrize("planes", [1, 4, 5, 12, 1000])
def test_scores_do_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch, planes: int) -> None:
    """12 planes of truth, of which finn's form is worked out so many at once."""
    monkeypatch.setattr(metrics, "_PIECE_CPU", planes * 20 * 24)
    prediction, truth = torch.rand(3, 2, 2, 3, 20, 24), torch.rand(2, 2, 3, 20, 24)
    scores = frame_scores(prediction, truth, list(ORACLES))
    assert list(scores) == list(ORACLES)
    for name, score in scores.items():
        assert score.shape == (3, 2, 2)
        assert_close(score, oracle(name, prediction, truth), FLOAT32)
        assert_close(scores_of(name, prediction, truth), score.double(), FLOAT32)


@pytest.mark.parametrize(
    "lead",
    [((), ()), ((3,), ()), ((3, 2), (2,)), ((3, 2), (3, 1)), ((3, 2), (1, 1)), ((3, 2, 4), (2, 1)), ((0, 2), (2,))],
    ids=str,
)
def test_leading_dimensions_of_truth_broadcast(lead: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    prediction, truth = (torch.rand(*sizes, 2, 12, 16) for sizes in lead)
    for name, score in frame_scores(prediction, truth, list(ORACLES)).items():
        assert score.shape == lead[0]
        assert_close(score, oracle(name, prediction, truth), FLOAT32)


def test_strides_and_gradients_do_not_matter() -> None:
    prediction, truth = torch.rand(4, 3, 2, 16, 12), torch.rand(3, 2, 16, 12)
    want = frame_scores(prediction, truth, list(ORACLES))
    turned = prediction.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0).requires_grad_()
    for name, score in frame_scores(turned, truth, list(ORACLES)).items():
        assert torch.equal(score, want[name])
        assert not score.requires_grad


def test_no_clips() -> None:
    for prediction, truth in (((2, 0, 3, 1, 16, 16), (0, 3, 1, 16, 16)), ((0, 2, 3, 1, 16, 16), (2, 3, 1, 16, 16))):
        for score in frame_scores(torch.rand(prediction), torch.rand(truth), list(ORACLES)).values():
            assert score.shape == prediction[:3]


def test_one_of_float64_makes_the_scores_float64() -> None:
    prediction, truth = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    want = frame_scores(prediction.double(), truth.double(), list(ORACLES))
    for mixed in ((prediction.double(), truth), (prediction, truth.double())):
        for name, score in frame_scores(*mixed, list(ORACLES)).items():
            assert score.dtype == torch.float64
            assert torch.equal(score, want[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_frames_are_computed_in_float32(dtype: torch.dtype) -> None:
    prediction, truth = torch.rand(2, 3, 16, 16).to(dtype), torch.rand(2, 3, 16, 16)
    for name, score in frame_scores(prediction, truth, list(ORACLES)).items():
        assert score.dtype == torch.float32
        assert_close(score, oracle(name, prediction, truth), FLOAT32)


def test_what_is_not_a_number_stays_where_it_is() -> None:
    """In its channel of its frame, where finn counts it as -1, whatever frames lie beside it."""
    prediction, truth = torch.rand(3, 3, 16, 16), torch.rand(3, 3, 16, 16)
    prediction[1, 2, 15, 15] = math.nan
    for name in ORACLES:
        score, others = scores_of(name, prediction, truth), [0, 2]
        assert_close(score[others], oracle(name, prediction[others], truth[others]), FLOAT32)
        assert score[1].isnan() == (name != "ssim_finn")
    assert_close(ssim(prediction, truth, "finn"), oracle("ssim_finn", prediction, truth), FLOAT32)


@pytest.mark.parametrize(
    ("prediction", "truth", "names", "message"),
    [
        ((2, 1, 64, 64), (2, 1, 64, 64), ["psnr", "mse"], "names must be out of psnr, ssim, .*, got 'mse'"),
        ((2, 1, 64, 64), (3, 1, 64, 64), ["psnr"], r"truth must have .* \[2, 1, 64, 64\], got \[3, 1, 64, 64\]"),
        ((1, 1, 64, 64), (2, 1, 64, 64), ["psnr"], r"truth must have .* \[1, 1, 64, 64\], got \[2, 1, 64, 64\]"),
        ((1, 64, 64), (2, 1, 64, 64), ["psnr"], r"truth must have .* \[1, 64, 64\], got \[2, 1, 64, 64\]"),
        ((2, 3, 64, 64), (2, 1, 64, 64), ["ssim"], r"truth must have .*, got \[2, 1, 64, 64\]"),
        ((64, 64), (64, 64), ["psnr"], r"prediction must have dimensions \(..., C, H, W\), got shape \[64, 64\]"),
        ((1, 6, 64), (1, 6, 64), ["psnr", "ssim"], r"at least 7x7 pixels, .*, got shape \[1, 6, 64\]"),
        ((1, 64, 10), (1, 64, 10), ["ssim", "ssim_finn"], r"at least 11x11 pixels, .*, got shape \[1, 64, 10\]"),
    ],
)
def test_errors(prediction: tuple[int, ...], truth: tuple[int, ...], names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frame_scores(torch.rand(prediction), torch.rand(truth), names)


def test_frames_that_are_not_floating_point() -> None:
    grey = torch.rand(1, 16, 16)
    with pytest.raises(ValueError, match=r"truth must be floating point in \[0, 1\], got torch.uint8"):
        psnr(grey, (grey * 255).byte())
    with pytest.raises(ValueError, match=r"prediction must be floating point in \[0, 1\], got torch.int64"):
        ssim(grey.long(), grey)


def test_unknown_form() -> None:
    form: Any = "gauss"
    with pytest.raises(ValueError, match="form must be one of skimage, published, finn, got 'gauss'"):
        ssim(torch.rand(1, 16, 16), torch.rand(1, 16, 16), form)
