"""What the encoders and decoders share: normalisation per time step, the vector-to-map layers, split skip weights.

G time steps of N images lie one after another along dimension 0 of every activation, channels last in memory.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..ops.batch_norm_act import Activation, advance_running_statistics, presentation_weights
from ..ops.frame_conv import ConvWeight, prepare_conv
from ..ops.synchronised_norm import synchronised_batch_norm_act

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Mean and unbiased variance (G, C) of each BatchNorm of a network, in the order of `FrameNetwork.norms`.
StepStatistics = list[tuple[Tensor, Tensor]]

Conv = nn.Conv2d | nn.ConvTranspose2d


class PreparedConv(NamedTuple):
    """A convolution as its op wants it. Where it joins upstream and skip, `weight` is the upstream half.

    For running statistics the BatchNorm that follows is folded in: only its activation is left to do.
    """

    weight: ConvWeight
    bias: Tensor
    skip_weight: ConvWeight | None
    transposed: bool

    def __call__(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        return ops.frame_conv(x, self.weight, self.bias, addend=addend, transposed=self.transposed)

    def tensors(self) -> list[Tensor]:
        parts = (self.weight,) if self.skip_weight is None else (self.weight, self.skip_weight)
        return [self.bias, *(tensor for part in parts for tensor in (part.weight, *part.packed))]


# Made once a training step, not once a chunk of time, so that split and preparation are paid for once.
Weights = dict[Conv, PreparedConv]

NEGATIVE_SLOPE = 0.2
VECTOR_MAP = 4  # the encoder's head closes a 4 x 4 map; the decoder's first layer opens one


def channels_last(x: Tensor) -> Tensor:
    """x (N, C, H, W) with channels last in memory, also where C = 1.

    `contiguous` leaves a one-channel tensor as it is, since both layouts hold it alike; its strides would then choose
    the slower layout for the whole network.
    """
    return x.clone(memory_format=torch.channels_last)


class _FirstImages(torch.autograd.Function):
    """x and its first images, which the decoder takes as skips; their gradients meet in one tensor.

    Autograd by itself would fill up the smaller gradient with zeros and add the two: three passes over an activation.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, images: int) -> tuple[Tensor, Tensor]:
        ctx.images, ctx.shape = images, x.shape
        ctx.set_materialize_grads(False)
        return x, x[:images]

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None, dfirst: Tensor | None) -> tuple[Tensor | None, None]:
        if dfirst is not None:
            dx = dfirst.new_zeros(ctx.shape) if dx is None else dx
            dx[: ctx.images].add_(dfirst)  # the next stage's convolution or pooling made dx for us alone
        return dx, None


class _AddSkips(torch.autograd.Function):
    """y (G * N, ...) plus halves of K skips (K * N, ...), in place: step g takes that of skip min(g, K - 1)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, halves: Tensor, images: int) -> Tensor:
        ctx.own, ctx.images = len(halves) - images, images
        ctx.mark_dirty(y)
        y[: ctx.own].add_(halves[: ctx.own])
        y[ctx.own :].unflatten(0, (-1, images)).add_(halves[ctx.own :])
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        shared = dy[ctx.own :].unflatten(0, (-1, ctx.images)).sum(0)
        return dy, torch.cat((dy[: ctx.own], shared)), None


def joined(chunks: Sequence[Tensor]) -> Tensor:
    """The chunks one after another; a single one as it is, without a copy."""
    return chunks[0] if len(chunks) == 1 else torch.cat(tuple(chunks))


def presented_once(steps: int, like: Tensor) -> Tensor:
    """Repeats (G,) of steps that are presented once each, on the device of `like`."""
    return torch.ones(steps, dtype=torch.int64, device=like.device)


def _prepare(conv: Conv, weight: Tensor) -> ConvWeight:
    """A convolution's weight, or half of it, for `frame_conv`; for the vector-to-map layers, channels last."""
    if conv.padding == (0, 0):
        return ConvWeight(channels_last(weight), [])
    return prepare_conv(weight, transposed=conv.transposed)


def _folded(conv: Conv, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution and the BatchNorm by running statistics in one."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert conv.bias is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    outputs = (1, -1, 1, 1) if conv.transposed else (-1, 1, 1, 1)
    return conv.weight * scale.view(outputs), norm.bias + (conv.bias - norm.running_mean) * scale


class ConvNorm(nn.Module):
    """A convolution and its BatchNorm under the published name `main`; the activation has no parameters."""

    def __init__(self, conv: Conv) -> None:
        super().__init__()
        self.main = nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))

    @property
    def conv(self) -> Conv:
        return cast(Conv, self.main[0])

    @property
    def norm(self) -> nn.BatchNorm2d:
        return cast(nn.BatchNorm2d, self.main[1])


class FrameNetwork(nn.Module):
    """A convolutional network applied to many frames at once that normalises each time step by itself."""

    process_group: ProcessGroup | None = None  # see `synchronise_norms`

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"process_group": None}  # a copy, or what a file holds, has no processes

    def statistics_group(self) -> ProcessGroup | None:
        """The processes whose images make up a step's statistics; None for this one alone."""
        return self.process_group if self.training and torch.is_grad_enabled() else None

    def norms(self) -> list[nn.BatchNorm2d]:
        return [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]

    def joins(self) -> list[Conv]:
        """The convolutions that take [upstream, skip]."""
        return []

    def weights(self, batch_statistics: bool) -> Weights:
        """Every convolution, prepared; with the BatchNorm that follows it, unless batch statistics are to be taken."""
        norms: dict[nn.Module, nn.BatchNorm2d] = {}
        for layer in () if batch_statistics else self.modules():
            if isinstance(layer, nn.Sequential) and isinstance(layer[-1], nn.BatchNorm2d):
                norms[layer[0]] = layer[-1]
        joins = self.joins()
        prepared = {}
        for conv in (module for module in self.modules() if isinstance(module, Conv)):
            assert conv.bias is not None
            weight, bias = _folded(conv, norms[conv]) if conv in norms else (conv.weight, conv.bias)
            halves = weight.chunk(2, dim=0 if conv.transposed else 1) if conv in joins else (weight,)
            first, *skip = (_prepare(conv, half) for half in halves)
            prepared[conv] = PreparedConv(first, bias, skip[0] if skip else None, conv.transposed)
        return prepared

    def normalise(
        self,
        x: Tensor,
        norm: nn.BatchNorm2d,
        steps: int,
        statistics: StepStatistics | None,
        activation: Activation = "leaky_relu",
    ) -> Tensor:
        """BatchNorm by each step's own statistics, which are appended, and activation; for None the activation alone,
        in place, since the running statistics are in the convolution before."""
        if statistics is None:
            return F.leaky_relu(x, NEGATIVE_SLOPE, inplace=True) if activation == "leaky_relu" else x.tanh_()
        options: Any = {"steps": steps, "activation": activation, "negative_slope": NEGATIVE_SLOPE, "eps": norm.eps}
        count: int | Tensor
        if (group := self.statistics_group()) is None:
            y, mean, var = ops.batch_norm_act(x, norm.weight, norm.bias, **options)
            count = x.numel() // (steps * x.shape[1])
        else:
            y, mean, var, count = synchronised_batch_norm_act(x, norm.weight, norm.bias, group=group, **options)
        statistics.append((mean, var * (count / (count - 1))))
        return y

    def update_running_statistics(self, chunks: Sequence[StepStatistics], repeats: Tensor) -> None:
        """Advance every BatchNorm as if the steps of `chunks`, in order, had been presented repeats (G,) times each.

        repeats: int64, on the device of the statistics, so that nothing is moved and no value is read back.
        """
        norms = self.norms()
        steps = [[*map(joined, zip(*parts, strict=True))] for parts in zip(*chunks, strict=True)]
        for momentum in {norm.momentum for norm in norms}:
            assert momentum is not None
            running, statistics = [], []
            for norm, (mean, var) in zip(norms, steps, strict=True):
                if norm.momentum == momentum:
                    running += [cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)]
                    statistics += [mean, var]
            advance_running_statistics(running, statistics, presentation_weights(repeats, momentum))
        # a list of them: a lone tensor would be taken for a number, and be read back
        torch._foreach_add_([cast(Tensor, norm.num_batches_tracked) for norm in norms], [repeats.sum()] * len(norms))


def synchronise_norms(model: nn.Module, group: ProcessGroup | None) -> None:
    """From now on take the batch statistics of all encoders and decoders in `model` over the processes of `group`, as
    one process would that held all their images; with None over this process's images again.

    That is so in training: in training mode, where gradients are recorded. All processes must then present as many
    steps, of one image or more each, and go backward as often; see `synchronised_batch_norm_act` for how their losses
    are to be scaled. What runs under `torch.no_grad()`, such as samples, is one process's own affair.
    A copy of the model, or what is saved of it, is not synchronised.
    """
    for module in model.modules():
        if isinstance(module, FrameNetwork):
            module.process_group = group


class FrameEncoder(FrameNetwork):
    """Stages `c1`, `c2`, ... whose outputs are the skips, then a head to the feature vector.

    Called like the published encoders: x (N, C, H, W) -> h (N, g_dim), skips, shallow to deep.
    """

    def __init__(self, stages: Sequence[nn.Module], width: int, g_dim: int) -> None:
        super().__init__()
        self.n_stages = len(stages)
        for k, stage in enumerate(stages, start=1):
            self.add_module(f"c{k}", stage)
        self.add_module(
            f"c{self.n_stages + 1}", nn.Sequential(nn.Conv2d(width, g_dim, VECTOR_MAP), nn.BatchNorm2d(g_dim))
        )

    @abstractmethod
    def run_stage(self, k: int, x: Tensor, weights: Weights, steps: int, statistics: StepStatistics | None) -> Tensor:
        """The skip of stage k (from 1), given that of stage k - 1 or the frames."""

    def encode(
        self, x: Tensor, weights: Weights, steps: int, batch_statistics: bool, skip_images: int | None = None
    ) -> tuple[Tensor, list[Tensor], StepStatistics]:
        """Frames (G * N, C, H, W) -> h (G * N, g_dim), skips shallow to deep, the statistics of each step.

        skip_images: of how many images, the first ones, skips are wanted; None for all. For 0 there are no skips.
        """
        statistics: StepStatistics = []
        record = statistics if batch_statistics else None
        skips = []
        for k in range(1, self.n_stages + 1):
            x = skip = self.run_stage(k, x, weights, steps, record)
            if skip_images == 0:
                continue
            if skip_images not in (None, len(x)):
                x, skip = _FirstImages.apply(x, skip_images)
            skips.append(skip)
        conv, norm = cast(tuple[nn.Conv2d, nn.BatchNorm2d], getattr(self, f"c{self.n_stages + 1}"))
        x = self.head_input(x)
        # a 4 x 4 kernel on a 4 x 4 map is one matrix product; channels last, both operands flatten without a copy
        head = weights[conv]
        h = F.linear(x.permute(0, 2, 3, 1).flatten(1), head.weight.weight.permute(0, 2, 3, 1).flatten(1), head.bias)
        h = self.normalise(h[..., None, None], norm, steps, record, "tanh")
        return h.flatten(1), skips, statistics

    def head_input(self, x: Tensor) -> Tensor:
        """What the head sees of the deepest skip."""
        return x

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        h, skips, statistics = self.encode(channels_last(x), self.weights(self.training), 1, self.training)
        if self.training:
            self.update_running_statistics([statistics], presented_once(1, x))
        return h, skips


class FrameDecoder(FrameNetwork):
    """`upc1` opens the feature vector to a 4 x 4 map; each level `upc2`, ... joins a skip, deepest first.

    A level begins with a convolution over [upstream, skip]. It is run as conv(upstream; W_up) + conv(skip; W_skip), so
    that the second half is computed once for all frames, samples and steps that share a skip.
    Called like the published decoders: (h (N, g_dim), skips) -> frames (N, C, H, W).
    """

    def __init__(self, width: int, g_dim: int, levels: Sequence[nn.Module]) -> None:
        super().__init__()
        self.n_levels = len(levels)
        self.upc1 = nn.Sequential(nn.ConvTranspose2d(g_dim, width, VECTOR_MAP), nn.BatchNorm2d(width))
        for k, level in enumerate(levels, start=2):
            self.add_module(f"upc{k}", level)

    @abstractmethod
    def join(self, k: int) -> Conv:
        """The convolution with which level k (from 2) joins upstream and skip."""

    def upsample(self, x: Tensor) -> Tensor:
        """Upstream as a joining convolution takes it."""
        return x

    @abstractmethod
    def finish_level(
        self, k: int, x: Tensor, weights: Weights, steps: int, statistics: StepStatistics | None
    ) -> Tensor:
        """The rest of level k, from the joined pre-activation on."""

    def levels(self) -> range:
        return range(2, self.n_levels + 2)

    def joins(self) -> list[Conv]:
        return [self.join(k) for k in self.levels()]

    def skip_halves(self, skips: Sequence[Tensor], weights: Weights) -> list[Tensor]:
        """conv(skip; W_skip) of every level, deepest first, for skips given shallow to deep."""
        halves = []
        for join, skip in zip(self.joins(), reversed(skips), strict=True):
            weight = weights[join].skip_weight
            assert weight is not None
            halves.append(ops.frame_conv(skip, weight, transposed=join.transposed))
        return halves

    def decode(
        self,
        h: Tensor,
        halves: Sequence[Tensor],
        weights: Weights,
        steps: int,
        batch_statistics: bool,
    ) -> tuple[Tensor, StepStatistics]:
        """h (G * N, g_dim) and halves of K skips (K * N, ...) -> frames (G * N, C, H, W), the statistics of each step.

        Step g takes the half of skip min(g, K - 1): its own where K = G, one that all share where K = 1.
        """
        statistics: StepStatistics = []
        record = statistics if batch_statistics else None
        conv, norm = cast(tuple[nn.ConvTranspose2d, nn.BatchNorm2d], self.upc1)
        opening = weights[conv]
        weight, bias = opening.weight.weight, opening.bias.repeat(VECTOR_MAP * VECTOR_MAP)
        x = F.linear(h, weight.permute(2, 3, 1, 0).flatten(0, 2), bias)
        x = x.unflatten(1, (VECTOR_MAP, VECTOR_MAP, -1)).permute(0, 3, 1, 2)
        x = self.normalise(x, norm, steps, record)
        for k, half in zip(self.levels(), halves, strict=True):
            repeating = len(half) in (len(h), len(h) // steps)
            x = weights[self.join(k)](self.upsample(x), half if repeating else None)
            if not repeating:
                x = _AddSkips.apply(x, half, len(h) // steps)
            x = self.finish_level(k, x, weights, steps, record)
        return x, statistics

    def forward(self, inputs: tuple[Tensor, Sequence[Tensor]]) -> Tensor:
        h, skips = inputs
        weights = self.weights(self.training)
        x, statistics = self.decode(h, self.skip_halves(skips, weights), weights, 1, self.training)
        if self.training:
            self.update_running_statistics([statistics], presented_once(1, x))
        return x
