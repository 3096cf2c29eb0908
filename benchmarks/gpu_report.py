"""What gpu_check found, in words: the machine, the tables, and whether all that ran passed."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import torch

import svg_fast
from svg_fast import backend

Row = Mapping[str, Any]


def machine(device: torch.device) -> dict[str, Any]:
    """The GPU, its driver, the software, and which kernel serves which op there."""
    facts: dict[str, Any] = {
        "name": "no GPU" if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "svg_fast": svg_fast.__version__,
        "build": backend.build_info(),
        "served_by": {op: where.get(device.type) for op, where in backend.table().items()},
    }
    if device.type == "cuda" and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "clocks": _clocks(),
        }
    return facts


def _clocks() -> str:
    """Driver, current and highest clocks of SMs and memory, power limit, as the driver's tool tells them."""
    query = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.limit"
    try:
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        return f"{query}: {subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown: {error}"


def report(found: Row) -> int:
    """The exit status: 1 where a test or the check of a case failed, or a test was not come to."""
    tests = found["tests"]
    rows = [row for part in ("roofs", "ops", "model", "profile") for row in found[part]]
    return int(bool(tests["failed"]) or "left_out" in tests or any("failed" in row for row in rows))


def tables(found: Row) -> Iterator[str]:
    """All of it for people, the table of ratios last."""
    facts = found["machine"]
    yield f"{facts['name']}, PyTorch {facts['torch']}, CUDA {facts['cuda']}, svg_fast {facts['svg_fast']}"
    yield f"build: {facts['build'] or 'no compiled kernels'}"
    if not facts["build"].get("cuda_architectures"):
        yield "there are no CUDA kernels: Triton's serve what they can, PyTorch the rest"
    references = [op for op, kind in facts["served_by"].items() if kind == "reference"]
    yield f"served by the reference: {', '.join(references) or 'nothing'}"
    yield _tests(found["tests"])
    yield from _roofs(found["roofs"][0])
    for row in found["profile"]:
        yield f"{row['case']}: {_profile(row)}"
    yield ""
    yield from _aligned([HEADER, *(line for part in ("ops", "model") for row in found[part] for line in _lines(row))])


HEADER = ("case", "form", "ours", "of roof", "of floor", "times as fast as")


def _tests(tests: Row) -> str:
    counts = ", ".join(f"{tests.get(name, 0)} {name}" for name in ("passed", "failed", "skipped"))
    failures = "".join(f"\n  failed: {name}: {message}" for name, message in tests.get("failures", {}).items())
    reasons = "".join(f" ({reason})" for reason in tests.get("reasons", []))
    stopped = f"; left out: {tests['left_out']}" if "left_out" in tests else ""
    return f"tests/gpu: {counts}{reasons}{stopped}{failures}"


def _roofs(roofs: Row) -> Iterator[str]:
    if "left_out" in roofs or "failed" in roofs:
        yield f"roofs: {_why(roofs)}"
        return
    rates = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in roofs["matrix_rate"].items())
    yield f"measured: copy {roofs['bandwidth'] / 1e9:.4g} GB/s; matrix products in TFLOP/s: {rates}"
    if roofs["graph_node"] is not None:
        yield f"measured: {roofs['graph_node'] * 1e6:.2f} us from kernel to kernel in a CUDA graph"


def _profile(row: Row) -> str:
    if "seconds" not in row:
        return _why(row)
    waits = row["synchronisation"] or "no synchronisation"
    return (
        f"{_time(row['seconds'])}, {row['kernels']} kernels, {row['launches']} launches,"
        f" {row['idle_percent']:.0f} % idle, {waits}; longest: {row['longest'][0]['name'][:60]}"
    )


def _why(row: Row) -> str:
    return f"FAILED: {row['failed']}" if "failed" in row else f"left out: {row['left_out']}"


def _lines(row: Row) -> Iterator[tuple[str, ...]]:
    if "forms" not in row:
        yield row["case"], "", "", "", "", _why(row)
        return
    for name, form in row["forms"].items():
        if "seconds" not in form:
            yield row["case"], name, "", "", "", f"left out: {form['left_out']['ours']}"
            continue
        peers = [f"{peer} {ratio:.2f}" for peer, ratio in form["times_as_fast"].items()]
        peers += [f"{peer}: {reason}" for peer, reason in form.get("left_out", {}).items()]
        percents = (f"{form[key]:.3g} %" if key in form else "" for key in ("percent_of_roof", "percent_of_floor"))
        yield row["case"], name, _time(form["seconds"]), *percents, ", ".join(peers)


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.3g} us" if seconds < 1e-3 else f"{seconds * 1e3:.4g} ms"


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
