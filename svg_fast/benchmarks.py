"""What a run of the benchmarks found, read from its JSON, and two runs compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Metric = Literal["times_as_fast", "median"]


@dataclass(frozen=True)
class Row:
    """One timed case. median in seconds; times_as_fast: a peer's time by ours, for each peer."""

    case: str
    group: str
    median: float
    times_as_fast: Mapping[str, float]
    threads: int
    instruction_set: str
    facts: Mapping[str, Any]  # all columns, as benchmarks/measure.py names them

    @property
    def label(self) -> str:
        """The case without its test: test_lstm_layer[B 16-training] is B 16-training."""
        test, _, parameters = self.case.partition("[")
        return parameters.removesuffix("]") or test.removeprefix("test_")


@dataclass(frozen=True)
class Results:
    """The rows of one run by their full names, and its machine in words."""

    path: Path
    machine: str
    rows: Mapping[str, Row]


def load(path: str | Path) -> Results:
    """Read a file written by `pytest benchmarks --benchmark-json=FILE`.

    Raises OSError where it cannot be read, ValueError where it is something else or holds no timed case.
    """
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        machine, rows = _machine(found["machine_info"]), {row["fullname"]: _row(row) for row in found["benchmarks"]}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON, but the benchmarks' results are: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not what `pytest benchmarks --benchmark-json=FILE` of this version writes: {error!r}"
        ) from error
    if not rows:
        raise ValueError(f"{path} holds no timed case")
    return Results(path, machine, rows)


def _machine(info: Mapping[str, Any]) -> str:
    cpu = info["cpu"]
    words = f"{cpu['brand_raw']} (family {cpu['family']}, model {cpu['model']}), {cpu['count']} cores"
    return f"{words}, PyTorch {info['torch']}"


def _row(row: Mapping[str, Any]) -> Row:
    facts = row["extra_info"]
    return Row(
        row["name"],
        row["group"] or "",
        float(row["stats"]["median"]),
        {peer: float(ratio) for peer, ratio in facts["times_as_fast"].items()},
        facts["threads"],
        facts["instruction_set"],
        facts,
    )


@dataclass(frozen=True)
class Change:
    """A figure of a case, then and now; ratio is how many times as fast it is now, one peer's speed being equal."""

    case: str
    peer: str
    old: float
    new: float
    ratio: float


@dataclass(frozen=True)
class Comparison:
    """The metric that could be compared, the changes of each case, and what a reader must know about them."""

    metric: Metric
    changes: list[Change]
    notes: list[str]

    def slower(self, threshold: float) -> list[Change]:
        """What became slower by more than `threshold` times."""
        return [change for change in self.changes if change.ratio * threshold < 1]

    def lines(self, threshold: float) -> Iterator[str]:
        """A table for people; what became slower than the threshold is marked."""
        slower = self.slower(threshold)
        header = ("case", "against", "old", "new", "ratio", "")
        unit, scale = (" ms", 1e3) if self.metric == "median" else ("", 1.0)
        table = [
            (
                change.case,
                change.peer,
                f"{change.old * scale:.4g}{unit}",
                f"{change.new * scale:.4g}{unit}",
                f"{change.ratio:.2f}",
                "slower" if change in slower else "",
            )
            for change in self.changes
        ]
        widths = [max(map(len, column)) for column in zip(header, *table, strict=True)]
        for cells in (header, *table):
            left = (cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True))
            right = (cell.rjust(width) for cell, width in zip(cells[2:5], widths[2:5], strict=True))
            yield "  ".join((*left, *right, cells[5])).rstrip()
        yield from self.notes


def compare(old: Results, new: Results, metric: Metric = "times_as_fast") -> Comparison:
    """How the cases that two runs share changed: their times as fast as each peer, or their median times.

    Medians say something of two runs on one machine with the same settings alone. Where these differ, only ratios
    within one run compare: times_as_fast takes the median's place, and a note says why.

    Raises ValueError where the runs have nothing to compare.
    """
    shared = [name for name in old.rows if name in new.rows]
    notes = [*_only(old, new), *_only(new, old)]
    differences = sorted(set(_differences(old, new, shared)))
    if differences:
        notes += [f"differs: {difference}" for difference in differences]
        notes.append("only ratios within one run compare")
        if metric == "median":
            notes.append("so times_as_fast was compared, not the median")
            metric = "times_as_fast"
    changes = [change for name in shared for change in _changes(old.rows[name], new.rows[name], metric)]
    if not changes:
        raise ValueError(f"{old.path} and {new.path} share no case that has a {metric}")
    return Comparison(metric, changes, notes)


def _only(here: Results, there: Results) -> Iterator[str]:
    """Cases and peers that one of two runs has alone."""
    for name, row in here.rows.items():
        other = there.rows.get(name)
        if other is None:
            yield f"{row.case}: in {here.path} only"
            continue
        for peer in row.times_as_fast:
            if peer not in other.times_as_fast:
                yield f"{row.case}: against {peer} in {here.path} only"


def _differences(old: Results, new: Results, shared: list[str]) -> Iterator[str]:
    if old.machine != new.machine:
        yield f"machine: {old.machine}, then {new.machine}"
    for name in shared:
        a, b = old.rows[name], new.rows[name]
        if a.threads != b.threads:
            yield f"threads: {a.threads}, then {b.threads}"
        if a.instruction_set != b.instruction_set:
            yield f"instruction set: {a.instruction_set}, then {b.instruction_set}"


def _changes(old: Row, new: Row, metric: Metric) -> Iterator[Change]:
    if metric == "median":
        yield Change(old.case, "", old.median, new.median, old.median / new.median)
        return
    for peer, ratio in old.times_as_fast.items():
        if peer in new.times_as_fast:
            now = new.times_as_fast[peer]
            yield Change(old.case, peer, ratio, now, now / ratio)
