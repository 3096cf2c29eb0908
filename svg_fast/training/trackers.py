"""Other places for a run's scalars: a function of the user's own, called by name."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger("svg_fast")


class Tracker(Protocol):
    """What a run reports to."""

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """The scalars of a step by name, such as "train/loss"; steps ascend, but not every step comes."""

    def close(self) -> None:
        """The run ends, however it does."""


def find_function(name: str) -> Callable[[Path, dict[str, Any]], Any]:
    """The function that "module:function" names.

    The module is imported and runs: `name` must come from whoever starts the run, never from a file.

    Raises ValueError for another form of name or a function that is not there, ModuleNotFoundError for a module that
    is not there or imports such a one, and what the module itself raises.
    """
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(f'tracker must be "module:function", got {name!r}')
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"tracker {name!r} cannot be imported: {error}", name=error.name) from error
    if not callable(found):
        raise ValueError(f"tracker must be a function of the module {module!r}, which has no {function!r}")
    make: Callable[[Path, dict[str, Any]], Any] = found
    return make


def make_tracker(name: str, log_dir: Path, config: Mapping[str, Any]) -> Tracker:
    """The tracker that the function called `name` makes of log_dir and the run's settings, in JSON's types.

    Later on a tracker that fails is dropped with a warning: no network is worth a run.

    Raises what `find_function` raises, ValueError where the function makes something else, and what it raises itself.
    """
    tracker = find_function(name)(log_dir, dict(config))
    for method in ("log", "close"):
        if not callable(getattr(tracker, method, None)):
            raise ValueError(f"tracker {name!r} must return an object with log and close, got {type(tracker).__name__}")
    return _UntilItFails(name, tracker)


class _UntilItFails:
    """A tracker until it fails."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name = name
        self.tracker: Tracker | None = tracker

    def log(self, step: int, scalars: dict[str, float]) -> None:
        self._call("log", step, scalars)

    def close(self) -> None:
        self._call("close")

    def _call(self, method: str, *arguments: Any) -> None:
        if self.tracker is None:
            return
        try:
            getattr(self.tracker, method)(*arguments)
        except Exception as error:  # the user's code may raise anything
            self.tracker = None
            words = f"{type(error).__name__}: {error}"
            logger.warning("the tracker %s failed and gets nothing more of this run (%s)", self.name, words)
