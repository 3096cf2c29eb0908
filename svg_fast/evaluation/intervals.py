"""Means with their 95 % intervals, by the normal approximation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..data.displacements import Array

NORMAL_95 = 1.96  # standard errors to either side


class Interval(NamedTuple):
    """A mean, and half the width of its 95 % interval."""

    mean: Array
    half: Array


def interval(values: Array) -> Interval:
    """Of N >= 2 independent values (N, ...): the mean over the first axis, (...)."""
    half = NORMAL_95 * values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return Interval(np.asarray(values.mean(axis=0)), np.asarray(half))
