"""The two files that `torch.save` writes: one pickle after another (until torch 1.5), or a zip archive.

Sizes are held against the file's before anything of them is read, and a tensor is read only when it is asked for.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .unpickle import MAX_PICKLE, Refusal, Storage, StoredTensor, Unpickler

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_COUNT = struct.Struct("<q")  # before each storage of the old format: its elements
_ZIP = b"PK\3\4"


class PublishedCheckpointError(ValueError):
    """A published checkpoint that cannot be used: damaged, hostile, contradictory, or something else."""


@contextmanager
def opened(path: Path) -> Iterator[File]:
    """The checkpoint at `path`. Whatever goes wrong with it in the body is a PublishedCheckpointError.

    Raises OSError where it cannot be opened.
    """
    with path.open("rb") as file:
        try:
            start = file.read(len(_ZIP))
            file.seek(0)
            yield _Archive(file) if start == _ZIP else _OldFile(file)
        except Refusal as refusal:
            raise PublishedCheckpointError(f"{path} {refusal}") from refusal
        # whatever a damaged file makes of zipfile, pickletools and the rest, it is the file that is wrong
        except (ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError,
                struct.error, zipfile.BadZipFile) as error:  # fmt: skip
            reason = " ".join(str(error).split())[:200]
            raise PublishedCheckpointError(
                f"{path} is truncated, damaged or not a published checkpoint ({reason})"
            ) from error


class File:
    """What both formats have: `tree`, the unpickled value, and the tensors that it refers to."""

    def __init__(self, file: BinaryIO) -> None:
        self.size = os.fstat(file.fileno()).st_size  # bytes
        self.tree: Any = None

    def read(self, stored: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
        """The tensors by name, in memory of their own on the CPU, whatever device they were saved from.

        A storage is read for each of its tensors: together they may be no longer than the file.
        """
        if sum(tensor.storage.numel * tensor.storage.dtype.itemsize for tensor in stored.values()) > self.size:
            raise Refusal("has tensors in storages of more elements than the file holds")
        return {name: self._tensor(tensor) for name, tensor in stored.items()}

    def _tensor(self, tensor: StoredTensor) -> Tensor:
        tensor.check()
        storage = tensor.storage
        data = bytearray(self._bytes(storage))
        whole = torch.frombuffer(data, dtype=storage.dtype)
        return whole.as_strided(tensor.size, tensor.stride, storage.start + tensor.offset).clone()

    def _bytes(self, storage: Storage) -> bytes:
        raise NotImplementedError


class _OldFile(File):
    """Pickles of a magic number, a version, the writer's system, the value, and the storages' keys; then these."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        head = BytesIO(file.read(MAX_PICKLE + 1))
        try:
            if Unpickler().load(head) != _MAGIC or Unpickler().load(head) != _PROTOCOL:
                raise Refusal("is not a checkpoint that torch.save wrote")
            _check_byte_order(Unpickler().load(head)["little_endian"])
            unpickler = Unpickler()
            self.tree = unpickler.load(head)
            keys = Unpickler().load(head)
        except ValueError:
            if head.tell() > MAX_PICKLE:
                raise Refusal(_TOO_LONG) from None
            raise
        self._file = file
        self._starts: dict[str, int] = {}
        position = head.tell()
        for key in keys:
            if type(key) is not str:  # hashing a tuple of tuples of tuples ... takes exponential time
                raise Refusal("has a list of storages that are not named by strings")
            dtype, numel = unpickler.storages[key]
            file.seek(position)
            (found,) = _COUNT.unpack(file.read(_COUNT.size))
            self._starts[key] = position + _COUNT.size
            position = self._starts[key] + numel * dtype.itemsize
            if found != numel or position > self.size:
                raise Refusal("is truncated or damaged: its tensors are not as long as it says")

    def _bytes(self, storage: Storage) -> bytes:
        self._file.seek(self._starts[storage.key])
        return self._file.read(storage.numel * storage.dtype.itemsize)


class _Archive(File):
    """An archive of `<name>/data.pkl` and the storages `<name>/data/<key>`, none of them compressed."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._zip = zipfile.ZipFile(file)
        found = [name for name in self._zip.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(found) != 1:
            raise Refusal("is a zip archive that torch.save did not write")
        self._folder = found[0].removesuffix("data.pkl")
        order = f"{self._folder}byteorder"
        if order in self._zip.namelist():
            _check_byte_order(self._zip.getinfo(order).file_size == 6 and self._member("byteorder", 6) == b"little")
        length = self._zip.getinfo(found[0]).file_size
        if length > MAX_PICKLE:
            raise Refusal(_TOO_LONG)
        self.tree = Unpickler().load(BytesIO(self._member("data.pkl", length)))

    def _bytes(self, storage: Storage) -> bytes:
        return self._member(f"data/{storage.key}", storage.numel * storage.dtype.itemsize)

    def _member(self, name: str, length: int) -> bytes:
        """What the archive keeps under `name`, whose length must be this and must be there."""
        info = self._zip.getinfo(self._folder + name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise Refusal(f"has a compressed member {ascii(name)[:50]}, torch.save compresses nothing")
        if not info.file_size == info.compress_size == length <= self.size:
            raise Refusal(f"is truncated or damaged: {ascii(name)[:50]} is not as long as it says")
        return self._zip.read(info)


_TOO_LONG = f"has a pickle of more than {MAX_PICKLE >> 20} MiB, or is damaged"


def _check_byte_order(little: Any) -> None:
    if little is not True:
        raise Refusal("was written on a machine with another byte order")
