"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write to; on success it takes `path`'s place, on any error nothing is left or changed.

    It has the same name, and so the same ending, in a folder of its own. The bytes are on disk before the name is.
    """
    path = Path(path)
    try:
        with _part_of(path) as part:
            yield part
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say what it was full for
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove what a process left in `folder` that was killed while `replacing` a file."""
    for left in folder.glob(f"{_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)


_PREFIX = ".writing-"


@contextmanager
def _part_of(path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=_PREFIX) as folder:
        part = Path(folder) / path.name
        yield part
        for flush in (part, path.parent):
            descriptor = os.open(flush, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if flush == part:
                os.replace(part, path)
