"""How much is worked off at once: rows of images that fit a memory limit, or a CPU's allocator and caches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .config import SVGConfig

if TYPE_CHECKING:
    from .frame_network import Weights

# On a CPU an activation stays below this. The allocator returns tensors of 32 MiB and more to the system as soon as
# they are freed, and every page of the next one is faulted in anew: that cost more than the arithmetic itself.
_CPU_ACTIVATION_BYTES = 16 * 2**20
_FREE_SHARE = 0.5  # of a GPU's free memory, for a chunk
# Held at once, in units of `activation_bytes`: of a row a level's upstream, its join and that normalised, and the
# frame; of a clip, for all its samples, the skips' halves.
_LIVE, _KEPT = 4, 2
_OWN_SKIPS = 4  # more of a row where each has skips of its own: the skips, their halves, and those of the frame before
_VIDEOS = 2  # the chunk's and, until the caller lets go of it, the last one's


def activation_bytes(config: SVGConfig, element_size: int) -> int:
    """The largest activation of one image."""
    side = config.image_size // (2 if config.backbone == "dcgan" else 1)
    return config.nf * side * side * element_size


def images_at_once(config: SVGConfig, like: Tensor) -> int | None:
    """How many images encoder and decoder had best take at once; None where all of them.

    like: any tensor of the model's dtype on its device.
    """
    if like.device.type != "cpu":
        return None
    return max(_CPU_ACTIVATION_BYTES // activation_bytes(config, like.element_size()), 1)


def chunk_size(
    config: SVGConfig,
    given: Tensor,
    n_frames: int,
    n_samples: int,
    *,
    whole_batch: bool,
    memory_limit: int | None,
    weights: Sequence[Weights],
) -> tuple[int, int, int]:
    """Samples and clips (B of them given, (B, n, C, H, W)) of a chunk of rollouts of n_frames; images at once at most.

    whole_batch: a chunk must have all clips, whose statistics belong together. memory_limit in bytes; None leaves it to
    the device. It holds the prepared weights, and for each row and clip what the constants above say.

    Raises ValueError where the least chunk does not fit the memory_limit.
    """
    batch, size = len(given), given.element_size()
    activation = activation_bytes(config, size)
    live = _LIVE + _OWN_SKIPS * config.last_frame_skip
    row, clip = live * activation + _VIDEOS * n_frames * given[0, 0].numel() * size, _KEPT * activation
    least = batch if whole_batch else 1  # clips
    rows = images_at_once(config, given) or _rows_in_memory(given, row) or batch * n_samples
    if memory_limit is not None:
        fixed = _prepared_bytes(weights)
        needed = fixed + least * (row + clip)
        if memory_limit < needed:
            raise ValueError(
                f"memory_limit must be at least {needed} bytes, for one sample of {least} clips of {n_frames} frames,"
                f" got {memory_limit}"
            )
        left = memory_limit - fixed
        rows = min(rows, (left - least * clip) // row if whole_batch else left // (row + clip))
    clips = batch if whole_batch else _even(batch, rows)
    return _even(n_samples, max(rows // clips, 1)), clips, rows


def _rows_in_memory(given: Tensor, row: int) -> int | None:
    """Of a GPU; None elsewhere."""
    if given.device.type != "cuda" or isinstance(given, FakeTensor):
        return None
    free, _ = torch.cuda.mem_get_info(given.device)
    free += torch.cuda.memory_reserved(given.device) - torch.cuda.memory_allocated(given.device)
    return max(int(_FREE_SHARE * free) // row, 1)


def _prepared_bytes(weights: Sequence[Weights]) -> int:
    """What prepared weights take, or a little more: some are the model's own."""
    tensors = (tensor for prepared in weights for conv in prepared.values() for tensor in conv.tensors())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _even(count: int, most: int) -> int:
    """The size of as few parts as may be, none larger than `most`, of about the same size."""
    parts = -(-count // max(most, 1))
    return -(-count // parts)


def ranges(count: int, size: int) -> Iterator[range]:
    """0 .. count - 1 in runs of `size`."""
    return (range(first, min(first + size, count)) for first in range(0, count, size))
