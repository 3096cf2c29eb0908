"""One HTML file that shows evaluations and needs nothing else: no network, no script, no file beside it."""

from __future__ import annotations

import io
import math
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..files import replacing
from .curves import colour, draw_bound, draw_curves, shared_metrics
from .pages import Picture, in_words, picture, render
from .results import LOWER_IS_BETTER, SUMMARIES, Evaluation, label

_DPI = 160
_MINUS, _DASH = "\N{MINUS SIGN}", "\N{EN DASH}"

# The protocol in words: a sentence is told where all its values are known, what no sentence tells is listed.
_SENTENCES = (
    "{n_past} frames of a clip are given and the {n_future} after them predicted; training clips had {horizon} frames.",
    "Samples drawn for each clip: {n_samples}.",
    "95\u00a0% intervals are 1.96 standard errors over {n_clips} clips.",
    "BatchNorm uses {statistics} statistics in sampling.",
)
_SUMMARY_WORDS = {"best": "best sample", "mean": "mean of samples", "worst": "worst sample"}


class Group(NamedTuple):
    """Rows of the table of results: words, for each model a number and half its interval, and which are best."""

    title: str
    rows: list[tuple[str, list[tuple[str, str]], set[int]]]


class Protocol(NamedTuple):
    """Of which models, in sentences, and what is left as pairs of words."""

    of: str
    sentences: list[str]
    pairs: list[tuple[str, str]]


def write_report(
    path: str | Path,
    evaluations: Sequence[Evaluation],
    pictures: Mapping[str, str | Path],
    title: str = "Stochastic video generation: evaluation",
) -> None:
    """Write the HTML file `path`: results, curves, bound, pictures, protocol, how to repeat it, and all numbers.

    pictures: caption -> a PNG or GIF file. A protocol's "command" is shown as what repeats the evaluation, its
    "n_samples" beside the model's name.

    Raises ValueError where the models cannot be drawn together (`curve_figure`) or a picture is neither PNG nor GIF;
    OSError where one cannot be read; ImportError without matplotlib.
    """
    metrics = shared_metrics(evaluations)
    curves = [curve for e in evaluations for summaries in e.curves.values() for curve in summaries.values()]
    content = {
        "title": title,
        "models": [(e, colour(k)) for k, e in enumerate(evaluations)],
        "groups": _results(evaluations),
        "plots": [[_curve_plot(evaluations, metric) for metric in metrics], _bound_plots(evaluations)],
        "pictures": [_load_picture(caption, Path(file)) for caption, file in pictures.items()],
        "protocols": _protocols(evaluations),
        "at_most": any(curve.average_interval is None for curve in curves),
    }
    page = render("report.html.j2", content, {"label": label, "number": _number, "measured": _measured})
    with replacing(path) as part:
        part.write_text(page, encoding="utf-8")


def _results(evaluations: Sequence[Evaluation]) -> list[Group]:
    """All headline numbers, a group of rows for each metric, for the bound, and for what has no time axis."""
    groups = []
    for metric in dict.fromkeys(metric for e in evaluations for metric in e.curves):
        rows = []
        for summary in SUMMARIES:
            curves = [e.curves.get(metric, {}).get(summary) for e in evaluations]
            averages = [(math.nan, math.nan) if curve is None else curve.average for curve in curves]
            if any(curves):
                # the worst of one sample is no feat
                best = _best([mean for mean, _ in averages], metric in LOWER_IS_BETTER) if summary != "worst" else set()
                rows.append((_SUMMARY_WORDS[summary], [_measured(*average) for average in averages], best))
        groups.append(Group(f"{label(metric)}, mean over the predicted frames", rows))
    if any(e.bound for e in evaluations):
        elbo = [math.nan if e.bound is None else e.bound.elbo for e in evaluations]
        kl = [math.nan if e.bound is None else _mean(e.bound.kl_per_step) for e in evaluations]
        mse = [math.nan if e.bound is None else _mean(e.bound.mse_per_step) for e in evaluations]
        rows = [("ELBO (nats per frame)", _alone(elbo), _best(elbo)), ("KL (nats per frame)", _alone(kl), set())]
        rows.append(("MSE of a pixel", _alone(mse), _best(mse, lower=True)))
        groups.append(Group("Variational bound, teacher-forced", rows))
    rows = []
    for name in dict.fromkeys(name for e in evaluations for name in e.scalars):
        values = [e.scalars.get(name, math.nan) for e in evaluations]
        best = _best(values, lower=True) if name in LOWER_IS_BETTER else set[int]()
        rows.append((label(name), _alone(values), best))
    return [*groups, Group("Sets of samples", rows)] if rows else groups


def _alone(values: Sequence[float]) -> list[tuple[str, str]]:
    return [(_number(value), "") for value in values]


def _best(values: Sequence[float], lower: bool = False) -> set[int]:
    """Which models are best, where there is more than one."""
    known = [value for value in values if math.isfinite(value)]
    if len(known) < 2:
        return set()
    best = min(known) if lower else max(known)
    return {k for k, value in enumerate(values) if value == best}


def _curve_plot(evaluations: Sequence[Evaluation], metric: str) -> Picture:
    """The best sample's curve; of a single model the mean and the worst of its samples too."""
    ends = []
    for e in evaluations:
        mean = e.curves[metric]["best"].mean
        ends.append(f"{e.name} from {_number(mean[0])} to {_number(mean[-1])}")
    first, last = evaluations[0].n_past + 1, evaluations[0].n_past + evaluations[0].n_future
    caption = f"{label(metric)} of the best sample for each predicted frame, with its 95\u00a0% interval."
    caption += " Thin lines: the mean over the samples, and the worst one." if len(evaluations) == 1 else ""
    alt = f"{label(metric)} of the best sample, frames {first} to {last}: {'; '.join(ends)}."
    return _plot(draw_curves(evaluations, [metric], spread=len(evaluations) == 1), caption, alt)


def _bound_plots(evaluations: Sequence[Evaluation]) -> list[Picture]:
    known = [(e.name, e.bound) for e in evaluations if e.bound is not None]
    plots = []
    for term, words in (("elbo", "The bound"), ("kl", "KL of the posterior to the prior")) if known else ():
        steps = ((name, getattr(bound, f"{term}_per_step")) for name, bound in known)
        ends = "; ".join(f"{name} from {_number(values[0])} to {_number(values[-1])}" for name, values in steps)
        caption = f"{words} for each frame, in nats, when all true frames before it are given."
        plots.append(_plot(draw_bound(evaluations, term), caption, f"{words} in nats, first to last frame: {ends}."))
    return plots


def _plot(figure: Any, caption: str, alt: str) -> Picture:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    return _picture(file.getvalue(), caption, alt)


def _load_picture(caption: str, path: Path) -> Picture:
    try:
        return _picture(path.read_bytes(), caption, caption)
    except ValueError as error:
        raise ValueError(f"{path} must be a PNG or a GIF ({error})") from error


def _picture(data: bytes, caption: str, alt: str) -> Picture:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "GIF")) as image:
            kind, size, n_frames = str(image.format).lower(), image.size, getattr(image, "n_frames", 1)
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error
    alt = f"{alt} (animation of {n_frames} frames)" if n_frames > 1 else alt
    return picture(data, kind, size, caption, alt)


def _protocols(evaluations: Sequence[Evaluation]) -> list[Protocol]:
    """What holds for all models once, then what is each one's own."""
    own = [{"n_past": e.n_past, "n_future": e.n_future, "horizon": e.horizon, **e.protocol} for e in evaluations]
    for values in own:
        values.pop("command", None)
    shared = {name: value for name, value in own[0].items() if all(_holds(values, name, value) for values in own)}
    rest = [{name: value for name, value in values.items() if name not in shared} for values in own]
    described = [("All models" if len(own) > 1 else evaluations[0].name, shared)]
    described += [(e.name, values) for e, values in zip(evaluations, rest, strict=True) if values]
    return [_describe(of, values) for of, values in described if values]


def _holds(values: Mapping[str, Any], name: str, value: Any) -> bool:
    return name in values and values[name] == value


def _describe(of: str, values: Mapping[str, Any]) -> Protocol:
    words = {name: in_words(value) for name, value in values.items()}
    told: set[str] = set()
    sentences = []
    for sentence in _SENTENCES:
        names = {name for _, name, _, _ in string.Formatter().parse(sentence) if name}
        if names <= words.keys():
            sentences.append(sentence.format_map(words))
            told |= names
    pairs = [(name.replace("_", " "), text) for name, text in words.items() if name not in told]
    return Protocol(of, sentences, pairs)


def _measured(mean: float, half: float) -> tuple[str, str]:
    """A mean and half its interval, to two digits of the half: 0.8123 and 0.0045."""
    if not (math.isfinite(mean) and math.isfinite(half) and half > 0):
        return _number(mean), ""
    digits = min(max(1 - math.floor(math.log10(half)), 0), 6)
    return f"{mean:.{digits}f}".replace("-", _MINUS), f"{half:.{digits}f}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return _DASH
    text = f"{value:,.1f}" if abs(value) >= 1000 else f"{value:#.4g}" if value else "0"
    return text.replace("-", _MINUS)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
