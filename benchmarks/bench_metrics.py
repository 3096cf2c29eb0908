"""PSNR and SSIM of the samples that a best-of-100 evaluation draws for a batch of 16 clips.

Against a loop over scikit-image, frame by frame, which takes float32 frames like ours and computes the sums in
float64. The least work is reading every frame once.
"""

from __future__ import annotations

import pytest
import torch
from measure import Race, traffic
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from test_metrics import FLOAT32, assert_close, oracle

from svg_fast.evaluation.metrics import frame_scores

SAMPLES, CLIPS, FRAMES, SIZE = 100, 16, 25, 64
ROUNDS = 5  # a pass of the loop takes seconds
NAMES = ["psnr", "ssim"]


@pytest.mark.benchmark(group="frame_scores")
def test_psnr_and_ssim(race: Race) -> None:
    truth = torch.rand(CLIPS, FRAMES, 1, SIZE, SIZE)
    prediction = torch.rand(SAMPLES, *truth.shape).add_(truth).div_(2)
    samples, clips = prediction.flatten(1, 3).numpy(), truth.flatten(0, 2).numpy()

    def loop() -> list[tuple[float, float]]:
        return [
            (peak_signal_noise_ratio(y, x, data_range=1), structural_similarity(x, y, data_range=1))
            for sample in samples
            for x, y in zip(sample, clips, strict=True)
        ]

    def check() -> None:
        scores, some = frame_scores(prediction, truth, NAMES), slice(None, None, SAMPLES // 4)
        for name in NAMES:
            assert_close(scores[name][some], oracle(name, prediction[some], truth), FLOAT32)

    race(
        lambda: frame_scores(prediction, truth, NAMES),
        {"scikit-image": loop},
        check=check,
        ops=["frame_scores"],
        work=traffic(prediction.numel() + truth.numel()),
        rounds=ROUNDS,
    )
