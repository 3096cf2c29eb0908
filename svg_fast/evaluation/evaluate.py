"""Best-of-N evaluation of a model on test clips: one pass over all samples, of which one chunk is held at a time.

N clips, of which n_past frames are given; S samples of each; F predicted frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..models import SVG
from ..models.config import Statistics
from ..models.generation import Chunk
from .bound import bound_terms, make_bound
from .fvd import I3D, MIN_FRAMES, GaussianStatistics, frechet_distance
from .intervals import NORMAL_95
from .lpips import LPIPS
from .metrics import frame_scores
from .results import LOWER_IS_BETTER, Curve, Evaluation

FRAME_METRICS = ("psnr", "ssim", "ssim_published", "ssim_finn")


@dataclass(frozen=True)
class Settings:
    """How a model is evaluated.

    n_samples: S futures drawn of each clip (one of the deterministic model). batch_size: clips that are sampled
    together, which batch statistics depend on; the clips are cut into groups of about the same size, none larger.
    metrics: of FRAME_METRICS. best_by: the metric whose mean over the predicted frames chooses best and worst sample;
    None: each metric its own. statistics: of BatchNorm, "batch" or "running"; None is the model's. temperature: factor
    of the prior's standard deviation. seed: of all noise. memory_limit: bytes, as in `SVG.sample`; results do not
    depend on it.

    Raises ValueError for a value that is not allowed.
    """

    n_samples: int = 100
    batch_size: int = 100
    metrics: tuple[str, ...] = ("psnr", "ssim")
    best_by: str | None = None
    statistics: Statistics | None = None
    temperature: float = 1.0
    seed: int = 1
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("n_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        unknown = [name for name in self.metrics if name not in FRAME_METRICS]
        if unknown or not self.metrics:
            raise ValueError(f"metrics must be of {', '.join(FRAME_METRICS)}, got {', '.join(self.metrics) or 'none'}")
        if self.best_by is not None and self.best_by not in self.metrics:
            raise ValueError(f"best_by must be one of the metrics {', '.join(self.metrics)}, got {self.best_by!r}")


@torch.no_grad()
def evaluate(
    model: SVG,
    clips: Tensor,
    settings: Settings | None = None,
    *,
    name: str = "",
    n_past: int | None = None,
    lpips: LPIPS | None = None,
    i3d: I3D | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> Evaluation:
    """Scores of every sample of every clip, and what is reported of them; the model's mode and buffers do not change.

    clips (N, T, C, H, W), float in [0, 1] or uint8, on any device; n_past of the T frames are given, by default the
    configuration's. name: what figures call the model. lpips, i3d: networks for LPIPS and FVD, if they are wanted; FVD
    is that of whole clips of T frames, the given ones included, the first sample of each clip against the true ones.
    progress: called with the number of rollouts that were finished since.

    diversity_mse is the mean squared difference of a pixel between two samples of a clip.

    Raises ValueError for clips or settings that do not fit the model.
    """
    settings, config = settings or Settings(), model.config
    n_past = config.n_past if n_past is None else n_past
    n_clips, n_frames = clips.shape[:2]
    if not 0 < n_past < n_frames:
        raise ValueError(f"clips must have more frames than the n_past = {n_past} given ones, got {n_frames}")
    if i3d is not None and n_frames < MIN_FRAMES:
        raise ValueError(f"FVD needs clips of at least {MIN_FRAMES} frames, got {n_frames}")
    statistics = settings.statistics or config.sampling_statistics()
    n_samples = 1 if config.variant == "det" else settings.n_samples
    device = model.frame_predictor.embed.weight.device
    tally = _Tally(settings.metrics, (n_samples, n_clips, n_frames - n_past), device, lpips, i3d)
    terms = torch.zeros(2, n_frames - 1, dtype=torch.float64, device=device)
    for seed, group in enumerate(_groups(n_clips, settings.batch_size), start=settings.seed):
        truth = model.prepare_frames(clips[group.start : group.stop].to(device))
        terms += len(group) * bound_terms(model, truth, statistics, seed)
        tally.begin(group, truth, n_past)
        chunks = model.sample_chunks(
            truth[:, :n_past],
            n_frames - n_past,
            n_samples,
            statistics=statistics,
            seed=seed,
            temperature=settings.temperature,
            memory_limit=settings.memory_limit,
        )
        for chunk in chunks:
            tally.add(chunk)
            progress(len(chunk.samples) * len(chunk.clips))
        tally.end()
    return Evaluation(
        name=name or config.title,
        n_past=n_past,
        horizon=config.n_past + config.n_future,
        curves=tally.curves(settings.best_by),
        bound=make_bound(config, terms / n_clips),
        scalars=tally.scalars(),
        protocol=_protocol(settings, n_samples, n_clips, statistics, i3d is not None),
    )


class _Tally:
    """What is found of all clips, a chunk of samples at a time: the clips in groups, begun and ended."""

    def __init__(
        self,
        metrics: Sequence[str],
        shape: tuple[int, int, int],
        device: torch.device,
        lpips: LPIPS | None,
        i3d: I3D | None,
    ) -> None:
        """shape: S samples, N clips, F frames."""
        self.metrics, self.lpips, self.i3d = metrics, lpips, i3d
        names = [*metrics, *(["lpips"] if lpips is not None else [])]
        self.scores = {name: torch.empty(shape, device=device) for name in names}
        self.variance = torch.zeros((), dtype=torch.float64, device=device)  # between samples, summed over the clips
        self.real, self.made = GaussianStatistics(), GaussianStatistics()

    def begin(self, group: range, truth: Tensor, n_past: int) -> None:
        self.group, self.truth, self.n_past = group, truth, n_past
        self.spread = _Spread(truth[:, n_past:])

    def add(self, chunk: Chunk) -> None:
        truth, future = self.truth[chunk.clips.start : chunk.clips.stop], chunk.video[:, :, self.n_past :]
        found = frame_scores(future, truth[:, self.n_past :], self.metrics)
        if self.lpips is not None:
            found["lpips"] = self.lpips(future, truth[:, self.n_past :])
        samples, first = slice(chunk.samples.start, chunk.samples.stop), self.group.start + chunk.clips.start
        for name, scores in found.items():
            self.scores[name][samples, first : first + len(truth)] = scores.float()
        self.spread.add(chunk, future)
        if self.i3d is not None and chunk.samples.start == 0:
            self.real.update(self.i3d.features(truth))
            self.made.update(self.i3d.features(chunk.video[0]))

    def end(self) -> None:
        self.variance += self.spread.total()

    def curves(self, best_by: str | None) -> dict[str, dict[str, Curve]]:
        means = {name: (-1 if name in LOWER_IS_BETTER else 1) * table.mean(2) for name, table in self.scores.items()}
        return {name: _curves(table, means[best_by or name]) for name, table in self.scores.items()}

    def scalars(self) -> dict[str, float]:
        n_samples, n_clips, _ = next(iter(self.scores.values())).shape
        found = {"diversity_mse": 2 * float(self.variance) / n_clips} if n_samples > 1 else {}
        return found | ({"fvd": frechet_distance(self.real, self.made)} if self.i3d is not None else {})


def _groups(n_clips: int, batch_size: int) -> Iterator[range]:
    """As few groups as may be, of the same size but for one clip: a single clip would have no batch statistics."""
    count = -(-n_clips // batch_size)
    edges = [-(-n_clips * k // count) for k in range(count + 1)]
    return map(range, edges, edges[1:])


class _Spread:
    """Variance between the samples of clips, (B, F, C, H, W) of them, chunk by chunk: sums of what differs from one."""

    def __init__(self, like: Tensor) -> None:
        self.origin, self.sum = torch.empty_like(like), torch.zeros_like(like)
        self.squares = like.new_zeros(len(like), dtype=torch.float64)
        self.n_samples = 0

    def add(self, chunk: Chunk, future: Tensor) -> None:
        here = slice(chunk.clips.start, chunk.clips.stop)
        if chunk.samples.start == 0:
            self.origin[here] = future[0]
        apart = future - self.origin[here]
        self.sum[here] += apart.sum(0)
        self.squares[here] += apart.double().square().flatten(2).mean(2).sum(0)
        self.n_samples = max(self.n_samples, chunk.samples.stop)

    def total(self) -> Tensor:
        """The unbiased variance of a pixel, a mean over frames and pixels, summed over the clips."""
        apart = self.sum.double().square().flatten(1).mean(1) / self.n_samples
        return ((self.squares - apart) / max(self.n_samples - 1, 1)).sum()


def _curves(scores: Tensor, quality: Tensor) -> dict[str, Curve]:
    """Scores (S, N, F) -> the curves of best, mean and worst sample; quality (S, N), the greater the better."""
    clips = torch.arange(scores.shape[1], device=scores.device)
    chosen = {
        "best": scores[quality.argmax(0), clips],
        "mean": scores.mean(0),
        "worst": scores[quality.argmin(0), clips],
    }
    return {summary: _curve(values.double()) for summary, values in chosen.items()}


def _curve(values: Tensor) -> Curve:
    """(N, F) -> means over the clips with their intervals."""
    error = NORMAL_95 / len(values) ** 0.5
    halves, half = values.std(0) * error, values.mean(1).std() * error
    return Curve(values.mean(0).tolist(), halves.tolist(), float(half))


def _protocol(
    settings: Settings, n_samples: int, n_clips: int, statistics: Statistics, fvd: bool
) -> dict[str, int | float | str | list[str]]:
    by = settings.best_by or "each metric's own"
    told = asdict(settings) | {"n_samples": n_samples, "statistics": statistics, "metrics": list(settings.metrics)}
    del told["memory_limit"]
    told |= {"n_clips": n_clips, "best_by": f"{by} mean over the predicted frames"}
    told["ssim_data_range"] = "1 (ssim, ssim_finn), 2 (ssim_published)"
    return told | ({"fvd_of": "the first sample of each clip, given frames included"} if fvd else {})
