"""What a model is: one frozen dataclass, and the paper's settings by name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, cast, get_args

Variant = Literal["lp", "fp", "det"]
Backbone = Literal["dcgan", "vgg"]
Skip = Literal["published", "paper"]
Statistics = Literal["batch", "running"]
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class SVGConfig:
    """Settings of an `SVG` model; names and defaults are the paper's (SM-MNIST).

    variant: lp (learned prior), fp (fixed prior) or det (deterministic baseline: no z, no KL).
    backbone: encoder and decoder, dcgan or vgg. image_size: height and width in pixels, 64 or 128. channels: of a
    frame. nf: base width, channels of the first encoder stage.
    g_dim: frame feature; z_dim: latent; rnn_size: hidden units of each LSTM; *_rnn_layers: their stacks' heights.
    n_past, n_future: frames conditioned on, and frames predicted in training; a training clip has their sum.
    beta: weight of the KL term in the loss.
    last_frame_skip: every step takes the skip connections of the frame before it, not of a conditioning frame.
    skip: past the conditioning frames, "published" takes the skips of frame n_past - 2, as the 2018 weights were
    trained; "paper" those of the last conditioning frame, n_past - 1 (frames counted from 0).
    generation_statistics: BatchNorm in `sample`: "batch" or "running"; None is how the variant was published
    (lp: batch, otherwise running).
    time_chunk: time steps that encoder and decoder take at once; None lets the device decide. recompute: activations
    are computed again in the backward pass instead of kept. Both change time and memory, the result by rounding alone.

    Raises ValueError for a value that is not allowed.
    """

    variant: Variant = "lp"
    backbone: Backbone = "dcgan"
    image_size: int = 64
    channels: int = 1
    nf: int = 64
    g_dim: int = 128
    z_dim: int = 10
    rnn_size: int = 256
    predictor_rnn_layers: int = 2
    posterior_rnn_layers: int = 1
    prior_rnn_layers: int = 1
    n_past: int = 5
    n_future: int = 10
    beta: float = 1e-4
    last_frame_skip: bool = False
    skip: Skip = "published"
    generation_statistics: Statistics | None = field(default=None, compare=False)
    time_chunk: int | None = field(default=None, compare=False)
    recompute: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {getattr(self, name)!r}")
        for name in _POSITIVE:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.beta >= 0:
            raise ValueError(f"beta must not be negative, got {self.beta}")
        check_conditioning(self, self.n_past, self.n_past + self.n_future)

    def sampling_statistics(self) -> Statistics:
        """BatchNorm in generation: what is set, or how the variant was published."""
        return self.generation_statistics or ("batch" if self.variant == "lp" else "running")

    @property
    def title(self) -> str:
        """What figures call the model."""
        return {"lp": "SVG-LP", "fp": "SVG-FP", "det": "deterministic"}[self.variant]

    def skip_frames(self, n_past: int, n_frames: int) -> int:
        """How many frames' skips the decoder uses: step j of the n_frames - 1 takes those of frame min(j, this - 1)."""
        if self.last_frame_skip:
            return n_frames - 1
        return min(n_past if self.skip == "paper" else n_past - 1, n_frames - 1)


_CHOICES: dict[str, tuple[Any, ...]] = {
    "variant": get_args(Variant),
    "backbone": get_args(Backbone),
    "image_size": (64, 128),
    "skip": get_args(Skip),
    "generation_statistics": (*get_args(Statistics), None),
}
_POSITIVE = (
    *("channels", "nf", "g_dim", "z_dim", "rnn_size", "predictor_rnn_layers", "posterior_rnn_layers"),
    *("prior_rnn_layers", "n_past", "n_future", "time_chunk"),
)


def check_conditioning(config: SVGConfig, n_past: int, n_frames: int) -> None:
    """Whether `n_past` conditioning frames fit a clip of `n_frames` and the configured skip; ValueError if not."""
    if n_past >= n_frames:
        raise ValueError(f"a clip must be longer than its n_past = {n_past} conditioning frames, got {n_frames} frames")
    if n_past == 1 and config.skip == "published" and not config.last_frame_skip:
        raise ValueError(
            'n_past = 1 leaves the published skip without a frame (it takes frame n_past - 2); use skip="paper",'
            " last_frame_skip=True, or n_past of 2 or more"
        )


def from_json(cls: type[Settings], values: dict[str, Any]) -> Settings:
    """A dataclass of settings from those that JSON holds, each of its default's type; absent ones keep their default.

    Raises KeyError for an unknown name, TypeError for another type, ValueError for a value that is not allowed.
    """
    defaults = {field.name: field.default for field in fields(cast(Any, cls))}
    for name, value in values.items():
        default = defaults[name]
        same = type(value) is type(default) or (isinstance(default, float) and type(value) is int)
        if not same and default is not None and value is not None:
            raise TypeError(f"{name} must be {type(default).__name__}, got {value!r}")
    return cls(**values)


def uses_batch(config: SVGConfig, statistics: Statistics | None, batch: int) -> bool:
    """Whether BatchNorm takes batch statistics of so many clips; None is as the model samples. ValueError where not."""
    statistics = config.sampling_statistics() if statistics is None else statistics
    if statistics not in get_args(Statistics):
        raise ValueError(f'statistics must be "batch" or "running", got {statistics!r}')
    if statistics == "batch" and batch == 1:
        raise ValueError(
            "batch statistics are undefined for a batch of one clip (the encoder's head has one value per channel);"
            ' sample two clips or more, or use statistics="running"'
        )
    return statistics == "batch"


# Denton & Fergus 2018, section 4 and the published training commands.
_DATASETS = {
    "smmnist": SVGConfig(),
    "kth": SVGConfig(backbone="vgg", z_dim=24, n_past=10, n_future=10, beta=1e-6),
    "bair": SVGConfig(backbone="vgg", channels=3, z_dim=64, n_past=2, n_future=10),
}
PRESETS: dict[str, SVGConfig] = {
    f"{dataset}-{variant}": replace(config, variant=variant)
    for dataset, config in _DATASETS.items()
    for variant in get_args(Variant)
}
# Not the paper's: SVG-LP that learns one digit visibly in minutes on two CPU cores, and models of one digit that learn
# how it moves in an hour of one core (docs/results.md tells how they were chosen).
PRESETS["smmnist-small"] = SVGConfig(nf=16, g_dim=64, rnn_size=128)
_ONE_DIGIT = SVGConfig(nf=16, g_dim=96, rnn_size=160, last_frame_skip=True, generation_statistics="running")
PRESETS |= {f"smmnist-1digit-{variant}": replace(_ONE_DIGIT, variant=variant) for variant in get_args(Variant)}
PRESETS["smmnist-1digit-lp-nonuniform"] = _ONE_DIGIT


def preset(name: str) -> SVGConfig:
    """The configuration called `name`: smmnist|kth|bair-lp|fp|det, smmnist-1digit-lp|fp|det|lp-nonuniform or
    smmnist-small.

    Raises ValueError for an unknown name, with the nearest one.
    """
    if name not in PRESETS:
        nearest = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"the presets are {', '.join(PRESETS)}"
        raise ValueError(f"unknown preset {name!r}; {hint}")
    return PRESETS[name]
