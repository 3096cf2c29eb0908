"""What a user can mend is one sentence; anything else is a defect, and shows its stack trace."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import click

from ..training import NonFiniteLoss

EXPECTED = (ValueError, OSError, ImportError, NonFiniteLoss)


def message(error: BaseException) -> str:
    """The sentence for an error of `EXPECTED`."""
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    return f"Error: {text}"


@contextmanager
def leaving() -> Iterator[None]:
    """One of several processes leaves at once, whatever happened: an error ends it without waiting for the others, who
    may be in a collective, and at the end of Python gloo's threads can wait for one another for ever.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    status = 0
    try:
        yield
    except SystemExit as leave:
        status = leave.code if isinstance(leave.code, int) else 1
    except BaseException as error:
        status = 1
        click.echo(message(error) if isinstance(error, EXPECTED) else traceback.format_exc(), err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
