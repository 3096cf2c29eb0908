"""Everything there is to measure on a GPU, within a time: tests, roofs, ops, models, profiles; see gpu_check.sh.

Each part runs in a process of its own, so that one that hangs or breaks the device takes no other with it, and writes
what it found line by line. What a part did not come to is in the table and in the JSON, with the reason.
"""

from __future__ import annotations

import argparse
import functools
import json
import signal
import subprocess
import sys
import time
import traceback
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from device_checks import tf32
from gpu_cases import CASES, PAPER, TINY, Case, measured_gpu
from gpu_measure import DeviceRace, Roofs, measure_roofs
from gpu_profile import profile, profiled_steps
from gpu_report import machine, report, tables

ROOT = Path(__file__).resolve().parents[1]
# Seconds for each part; what one leaves is the next one's.
BUDGETS = {"tests": 120, "roofs": 25, "ops": 100, "model": 110, "profile": 35}
RESERVE = 8  # for what comes last
Row = dict[str, Any]


def main() -> int:
    options = parse()
    device = torch.device(options.device)
    missing = "no GPU" if device.type == "cuda" and not torch.cuda.is_available() else None
    if options.part:
        run_part(options, device)
        return 0
    options.folder.mkdir(parents=True, exist_ok=True)
    found: Row = {"machine": machine(device), "tests": run_tests(options)}
    roofs: Row = {}
    for part in ("roofs", "ops", "model", "profile"):
        found[part] = [row | {"left_out": missing} for row in planned(part, options.tiny)] if missing else []
        if not missing:
            found[part] = measure(part, options, roofs)
            roofs = roofs or found["roofs"][0]
    found["seconds"] = time.time() - options.started
    path = options.folder / f"gpu_check-{found['machine']['name'].replace(' ', '-')}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written to {path}", *tables(found), sep="\n")
    return report(found)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the JSON goes")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, one round: whether all of it works")
    parser.add_argument("--minutes", type=float, default=8, help="for all of it, the build included")
    parser.add_argument(
        "--started", type=float, default=time.time(), help="when the build began, by the system's clock"
    )
    parser.add_argument("--part", choices=list(BUDGETS)[1:], help="this part alone, into the file given by --rows")
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--roofs", type=json.loads)
    parser.add_argument("--until", type=float)
    return parser.parse_args()


def seconds_for(part: str, options: argparse.Namespace) -> float:
    """What is left, less the budgets of the parts after it; where that is less than its own, a fair share."""
    left = options.started + 60 * options.minutes - RESERVE - time.time()
    names = list(BUDGETS)
    after = sum(BUDGETS[name] for name in names[names.index(part) + 1 :])
    return max(left * BUDGETS[part] / (BUDGETS[part] + after), left - after, 0)


def run_tests(options: argparse.Namespace) -> Row:
    """The tests of tests/gpu: how many passed, failed or were skipped, and the failures."""
    results = options.folder / "tests.xml"
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={results}"]
    command += sorted(map(str, (ROOT / "tests" / "gpu").glob("test_*.py")), reverse=True)  # ops before models
    limit, stopped = seconds_for("tests", options), {}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # pytest ends in good order, and tells what it had come to
            stopped = {"left_out": f"what did not fit into {limit:.0f} s"}
            try:
                output, _ = process.communicate(timeout=RESERVE)
            except subprocess.TimeoutExpired:  # it waits for a device that does not answer
                process.kill()
                output, _ = process.communicate()
    if not results.exists():
        return {"failed": 1, "failures": {"pytest": output[-2000:]}}
    cases = list(ElementTree.parse(results).iter("testcase"))
    results.unlink()
    broken = {
        case.attrib["name"]: item.attrib.get("message", "")[:500]
        for case in cases
        for item in case
        if item.tag in ("failure", "error")
    }
    skipped = [item.attrib.get("message", "") for case in cases for item in case if item.tag == "skipped"]
    return {
        "passed": len(cases) - len(broken) - len(skipped),
        "failed": len(broken) or int(process.returncode not in (0, 5) and not stopped),
        "skipped": len(skipped),
        "reasons": sorted(set(skipped)),
        "failures": broken,
        **stopped,
    }


def planned(part: str, tiny: bool) -> list[Row]:
    """The rows that a part will write, before it has."""
    if part == "roofs":
        return [{"case": "roofs"}]
    if part == "profile":
        return [{"case": name} for name, _ in profiled_steps(tiny)]
    return [{"case": str(case)} for case in CASES[part](TINY if tiny else PAPER)]


def measure(part: str, options: argparse.Namespace, roofs: Row) -> list[Row]:
    """The rows of a part from a process of its own. Where that process breaks, the first row that it did not write
    has failed; the others that it did not come to are left out."""
    rows, limit = options.folder / f"{part}.jsonl", seconds_for(part, options)
    rows.unlink(missing_ok=True)
    command = [sys.executable, __file__, str(options.folder), f"--part={part}", f"--rows={rows}"]
    command += [f"--until={time.time() + limit}", f"--roofs={json.dumps(roofs)}", f"--device={options.device}"]
    command += ["--tiny"] * options.tiny
    broken = None
    try:
        done = subprocess.run(command, timeout=limit + RESERVE / 2, capture_output=True, text=True)
        if done.returncode:
            broken = f"the process ended with {done.returncode}: {done.stderr.strip()[-300:]}"
    except subprocess.TimeoutExpired:
        pass  # it writes a row as soon as it has one
    written = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    rows.unlink(missing_ok=True)
    names = {row["case"] for row in written}
    missing = [row for row in planned(part, options.tiny) if row["case"] not in names]
    if broken and missing:
        written.append(missing.pop(0) | {"failed": broken})
    reason = "came after a failure" if broken else f"not within {limit:.0f} s"
    return written + [row | {"left_out": reason} for row in missing]


def run_part(options: argparse.Namespace, device: torch.device) -> None:
    """In the part's own process: its rows, one after another, as long as there is time."""
    with options.rows.open("w") as file:
        for row in PARTS[options.part](options, device):
            file.write(json.dumps(row) + "\n")
            file.flush()


def in_time(options: argparse.Namespace) -> bool:
    return time.time() < options.until


def roofs_part(options: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    yield {"case": "roofs", **asdict(measure_roofs(device, scale=1e-4 if options.tiny else 1.0))}


def cases_part(options: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    measured = "bandwidth" in options.roofs  # or that part was left out, or broke: then there are no shares of roofs
    roofs = Roofs(*(options.roofs[name] for name in ("bandwidth", "matrix_rate", "graph_node"))) if measured else None
    with tf32(False):  # for ours and for the peers: float32 is float32
        for case in CASES[options.part](TINY if options.tiny else PAPER):
            if in_time(options):
                yield {"case": str(case)} | attempt(functools.partial(race, case, device, roofs, options.tiny))


def race(case: Case, device: torch.device, roofs: Roofs | None, tiny: bool) -> Row:
    """The case's row; without its compiled peer where that breaks."""
    contest = DeviceRace(device, case.dtype, roofs, case.compiling, case.graphs, quick=tiny)
    try:
        case.run(contest)
    except Exception as error:
        if not case.compiling:
            raise
        contest = DeviceRace(device, case.dtype, roofs, False, case.graphs, quick=tiny)
        case.run(contest)
        contest.left_out = {"torch.compile": f"broke with {type(error).__name__}: {str(error)[:200]}"}
        contest.row["left_out"] = contest.left_out
    if case.floor is not None and roofs is not None:
        clusters = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
        floor = case.floor(measured_gpu(roofs, clusters))
        contest.row["floor_seconds"] = floor
        for form in contest.row["forms"].values():
            if "seconds" in form:
                form["percent_of_floor"] = 100 * floor / form["seconds"]
    return contest.row


def profile_part(options: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    with tf32(False):
        for name, make in profiled_steps(options.tiny):
            if in_time(options):
                yield {"case": name} | attempt(functools.partial(profile, make, device))


def attempt(measure: Callable[[], Row]) -> Row:
    """What was measured; or why it was not, which is a failure unless the memory was too small."""
    try:
        return measure()
    except torch.OutOfMemoryError:
        return {"left_out": "out of memory"}
    except AssertionError as error:
        return {"failed": str(error)[:500] or "a check without a message"}
    except Exception as error:  # one broken case must not end the rest
        return {"failed": f"{type(error).__name__}: {str(error)[:500]}", "traceback": traceback.format_exc()[-1500:]}
    finally:
        torch.compiler.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


PARTS: dict[str, Callable[[argparse.Namespace, torch.device], Iterator[Row]]] = {
    "roofs": roofs_part,
    "ops": cases_part,
    "model": cases_part,
    "profile": profile_part,
}


if __name__ == "__main__":
    sys.exit(main())
