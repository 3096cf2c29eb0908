"""Digits are found where they were drawn: to the pixel, to a fraction of one, and not where there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import fourier_shift, shift
from skimage.feature import match_template
from torch import Tensor

from svg_fast.data import MovingMNIST, load_digits
from svg_fast.evaluation.tracking import track

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
SIZE, DIGIT = 64, 32
PLACES = SIZE - DIGIT + 1


@pytest.fixture(scope="module", params=["sklearn", "mnist"])
def digits(request: pytest.FixtureRequest) -> Tensor:
    if request.param == "sklearn":
        return load_digits(None, "test")
    if not (REAL / "mnist").is_dir():
        pytest.skip("../shared/data/mnist is not here")
    return load_digits(REAL, "test")


def at_every_place(digit: Tensor) -> Tensor:
    """Frames (33 x 33, 64, 64) with a digit (32, 32) at (x, y), row by row."""
    frames = digit.new_zeros(PLACES * PLACES, SIZE, SIZE)
    for k, frame in enumerate(frames):
        y, x = divmod(k, PLACES)
        frame[y : y + DIGIT, x : x + DIGIT] = digit
    return frames


def test_every_place_is_found_exactly(digits: Tensor) -> None:
    y, x = torch.meshgrid(torch.arange(PLACES), torch.arange(PLACES), indexing="ij")
    for digit in digits[:: len(digits) // 6]:
        found = track(at_every_place(digit).view(PLACES, PLACES, SIZE, SIZE), digit)
        assert torch.equal(found.positions, torch.stack((x, y), dim=-1))
        assert (found.refined - found.positions).abs().max() < 0.2
        torch.testing.assert_close(found.scores, torch.ones(PLACES, PLACES))


def test_every_digit_is_found_exactly(digits: Tensor) -> None:
    clips = MovingMNIST(digits, 8, num_digits=1, seed=3).clips(range(400))
    found = track(clips.frames[:, :, 0].transpose(0, 1), digits[clips.digits[:, 0]])
    assert torch.equal(found.positions.transpose(0, 1), clips.positions[:, :, 0])
    torch.testing.assert_close(found.scores, torch.ones(8, 400))


@pytest.mark.parametrize("how", ["bilinear", "fourier"])
def test_fractions_of_a_pixel(digits: Tensor, how: str) -> None:
    moves = [(dx, dy) for dx in np.arange(-0.5, 0.6, 0.25) for dy in np.arange(-0.5, 0.6, 0.25)]
    errors = []
    for digit in digits[:: len(digits) // 20]:
        frame = np.zeros((SIZE, SIZE))
        frame[10 : 10 + DIGIT, 20 : 20 + DIGIT] = digit.numpy() / 255
        moved = []
        for dx, dy in moves:
            if how == "bilinear":
                moved.append(shift(frame, (dy, dx), order=1))
            else:
                moved.append(np.fft.ifft2(fourier_shift(np.fft.fft2(frame), (dy, dx))).real)
        refined = track(torch.from_numpy(np.stack(moved)), digit).refined.numpy()
        errors.append(refined - np.add(moves, (20, 10)))
    assert np.abs(errors).max() < 0.15
    assert np.sqrt(np.square(errors).mean()) < 0.04


def test_scores_are_scikit_images_in_noise(digits: Tensor) -> None:
    template = digits[5].numpy() / 255
    rng = np.random.default_rng(0)
    frames = rng.normal(0.4, 0.05, (4, SIZE, SIZE))
    for frame, (x, y), brightness in zip(
        frames, [(3, 30), (0, 0), (32, 32), (15, 7)], [0.2, 0.5, 0.4, 0.1], strict=True
    ):
        frame[y : y + DIGIT, x : x + DIGIT] += brightness * template
    found = track(torch.from_numpy(frames), digits[5])
    for frame, position, score in zip(frames, found.positions.tolist(), found.scores.tolist(), strict=True):
        wanted = match_template(frame, template)
        y, x = np.unravel_index(wanted.argmax(), wanted.shape)
        assert position == [x, y]
        assert score == pytest.approx(wanted.max(), abs=1e-5)


def test_a_sharp_ghost_does_not_hide_a_blurred_digit(digits: Tensor) -> None:
    digit = digits[2].double() / 255
    frame = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    for x in (29, 30, 31, 32):
        frame[20 : 20 + DIGIT, x : x + DIGIT] += digit / 4
    frame[:DIGIT, :DIGIT] += 0.05 * digit
    found = track(frame, digit)
    assert (found.refined - torch.tensor([30.5, 20])).abs().max() < 0.25
    assert 0.5 < found.scores < 1


def test_nothing_to_find(digits: Tensor) -> None:
    noise = torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    empty = torch.stack([torch.zeros(SIZE, SIZE), torch.ones(SIZE, SIZE), 0.05 * noise])
    assert track(empty, digits[0]).scores.max() < 0.3


def test_wrong_arguments_are_told(digits: Tensor) -> None:
    with pytest.raises(ValueError, match=r"as large as a template .* got \[2, 31, 64\] and \[32, 32\]"):
        track(torch.zeros(2, 31, 64), digits[0])
    with pytest.raises(ValueError, match=r"one at least, .* got \[0, 64, 64\]"):
        track(torch.zeros(0, 64, 64), digits[0])
    with pytest.raises(ValueError, match=r"templates \(B, h, w\), got \[2, 64, 64\] and \[3, 32, 32\]"):
        track(torch.zeros(2, 64, 64), digits[:3])
    with pytest.raises(ValueError, match="a template must have more than one value"):
        track(torch.zeros(2, 64, 64), torch.stack((digits[0], torch.ones_like(digits[0]))))
