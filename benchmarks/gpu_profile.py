"""Where the time of a step goes: its kernels, launches, idle gaps, and whether it waits for the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from bench_model import Clips, autocast, pair, training_step
from gpu_measure import clock_of
from measure import Run
from torch.profiler import ProfilerActivity

TOP = 15
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")


def profiled_steps(tiny: bool) -> Iterator[tuple[str, Callable[[torch.device], Run]]]:
    """Name, and what makes the call on a device."""
    if tiny:
        yield "training step, smmnist-small, B 2, float32", _training(Clips("smmnist-small", 2, 5, 6), torch.float32)
        return
    for preset in ("smmnist-lp", "smmnist-fp"):
        for dtype in (torch.float32, torch.bfloat16):
            yield f"training step, {preset}, B 100, {str(dtype)[6:]}", _training(Clips(preset, 100, 5, 15), dtype)
        yield f"rollout, {preset}, B 100, bfloat16", _rollout(Clips(preset, 100, 5, 30), torch.bfloat16)


def _training(clips: Clips, dtype: torch.dtype) -> Callable[[torch.device], Run]:
    return lambda device: training_step(pair(clips, device)[0], *clips.inputs(device=device), dtype)


def _rollout(clips: Clips, dtype: torch.dtype) -> Callable[[torch.device], Run]:
    def make(device: torch.device) -> Run:
        model, (frames, eps) = pair(clips, device)[0], clips.inputs(device=device)
        given, n_future = frames[:, : clips.n_past], clips.n_frames - clips.n_past

        def run() -> object:
            with autocast(device, dtype):
                return model.sample(given, n_future, eps=eps.unsqueeze(1))

        return run

    return make


def profile(make: Callable[[torch.device], Run], device: torch.device) -> dict[str, Any]:
    """Of one call: seconds; kernels and the seconds that they take in all; launches and copies by the host; the share
    of the time in which the device idles; its longest kernels (operators on a CPU); the first synchronisation, if any.
    """
    clock, run = clock_of(device), make(device)
    run()
    cuda = device.type == "cuda"
    lasted = clock(run, 3 if cuda else 1)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        run()
        if cuda:
            torch.cuda.synchronize()
    averages = profiler.key_averages()
    own = [e for e in averages if (e.device_type.name == "CUDA") == cuda]
    micros = {e.key: e.self_device_time_total if cuda else e.self_cpu_time_total for e in own}
    busy = sum(micros.values()) / 1e6
    return {
        "seconds": lasted,
        "device_seconds": busy,
        "kernels": sum(e.count for e in own),
        "launches": sum(e.count for e in averages if e.key.startswith(LAUNCHES)),
        "copies": {e.key: e.count for e in averages if e.key.startswith("Memcpy")},
        "idle_percent": max(0.0, 100 * (1 - busy / lasted)),
        "longest": [
            {"name": e.key, "count": e.count, "microseconds": micros[e.key]}
            for e in sorted(own, key=lambda e: micros[e.key], reverse=True)[:TOP]
        ],
        "synchronisation": synchronisation(run, device),
    }


def synchronisation(run: Run, device: torch.device) -> str | None:
    """What PyTorch says where the call makes the host wait for the device; None where it does not."""
    if device.type != "cuda":
        return None
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except RuntimeError as error:
        return str(error).strip().splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return None
