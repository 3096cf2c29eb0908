"""Which process reads which clips when: an endless or finite line of indices, cut into batches and shared out."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler


class SharedBatches(Sampler[list[int]]):
    """Batches of consecutive indices for one of world_size processes; a `batch_sampler` of a DataLoader.

    Together the processes take world_size * batch_size indices at a time, each its own part in the order of ranks; the
    rest at the end is shared out as evenly as it can be. Every index of first .. stop - 1 goes to one process, once;
    which ones a step takes depends on `first` and the sizes alone: to go on after k clips, with as many processes or
    other numbers of them, start from first + k.

    Args:
        stop: one past the last index.
        batch_size: indices of a batch, in each process.
        first: where to begin.
        rank, world_size: which process this is, of how many.

    Raises ValueError for an argument out of its range.
    """

    def __init__(self, stop: int, batch_size: int, *, first: int = 0, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1 or not 0 <= rank < world_size or not 0 <= first <= stop:
            raise ValueError(
                f"batch_size must be at least 1, rank in [0, world_size) and first in [0, stop], got batch_size"
                f" {batch_size}, rank {rank} of {world_size} and first {first} of {stop}"
            )
        self.stop, self.batch_size, self.first, self.rank, self.world_size = stop, batch_size, first, rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        together = self.world_size * self.batch_size
        for begin in range(self.first, self.stop, together):
            n = min(together, self.stop - begin)
            mine = range(begin + n * self.rank // self.world_size, begin + n * (self.rank + 1) // self.world_size)
            if mine:
                yield list(mine)

    def __len__(self) -> int:
        whole, rest = divmod(self.stop - self.first, self.world_size * self.batch_size)
        return whole + (rest * (self.rank + 1) // self.world_size > rest * self.rank // self.world_size)
