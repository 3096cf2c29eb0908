"""Odd and wrong calls of an op, drawn from seeds: `python tests/fuzz.py lstm_layer 17` repeats one, `... 0 200` many.

The calls are those of the op's public function and of the operators beneath it, as they are in use; then one to three
arguments are changed. A call must raise an error that says what was wanted, or give what the reference gives. The seed
is printed before the call, for the case that the process dies of it.
"""

from __future__ import annotations

import contextlib
import copy
import random
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from fuzz_changes import changed
from test_moving_mnist_op import arguments as moving_mnist_arguments
from test_ops import Recorder, call, evaluate
from torch import Tensor

from svg_fast import backend
from svg_fast.testing import select

SMALL = 12_000  # elements
# Relative to the largest element: it finds numbers from the wrong place in memory; test_ops.py judges the precision.
BOUND = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2.0**-6, torch.bfloat16: 2.0**-6}
CLEAR = re.compile(
    "must|need|give |Expected a value|supported|overflow|allocate memory|new_empty|new_zeros|single memory"
)

Call = tuple[str, Callable[..., Any], dict[str, Any]]


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)


def right_inputs(op: str) -> list[dict[str, Any]]:
    if op == "moving_mnist_clips":
        return [moving_mnist_arguments(index=torch.arange(3), digits=torch.full((2, 32, 32), 9, dtype=torch.uint8))]
    cases = [case.inputs() for case in select(op)]
    return [inputs for inputs in cases if 0 < sum(x.numel() for x in tensors([*inputs.values()])) < SMALL]


def right_calls(op: str) -> list[Call]:
    """The public function with its gradients, and the operators that it calls, forward and backward."""
    calls: list[Call] = []
    for inputs in right_inputs(op):
        calls.append((op, lambda **given: evaluate(call(op), given), inputs))
        with Recorder() as recorder:
            evaluate(call(op), copy.deepcopy(inputs))
        for operator, arguments in recorder.calls:
            names = [argument.name for argument in operator._schema.arguments]
            detached = copy.deepcopy(
                [
                    [*map(Tensor.detach, x)] if isinstance(x, list) else x.detach() if isinstance(x, Tensor) else x
                    for x in arguments
                ]
            )
            calls.append((operator.name(), operator, dict(zip(names, detached, strict=True))))
    return calls


def draw(calls: list[Call], seed: int) -> Call:
    rng = random.Random(seed)
    name, function, inputs = rng.choice(calls)
    inputs = copy.deepcopy(inputs)
    for argument in rng.sample(list(inputs), min(rng.choice([1, 1, 2, 3]), len(inputs))):
        inputs[argument] = changed(inputs[argument], rng)
    return name, function, inputs


def run(calls: list[Call], seed: int, widen: bool = False) -> list[Tensor]:
    """Results of one call, or of the same with all its numbers but seeds in float64."""
    _, function, inputs = draw(calls, seed)
    if widen:
        inputs = {name: value if name == "seed" else widened(value) for name, value in inputs.items()}
    torch.manual_seed(seed)
    return [*tensors(function(**inputs))]


def widened(value: Any) -> Any:
    if isinstance(value, list):
        return [widened(item) for item in value]
    return value.to(torch.float64) if isinstance(value, Tensor) else value


def difference(got: list[Tensor], want: list[Tensor], bound: float) -> str:
    """How results differ from the reference's; "" where they do not."""
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        if (a.shape, a.device) != (b.shape, b.device):
            return f"result {k} is {described(a)}, the reference's {described(b)}"
        there = b.to(a.dtype).isfinite()
        if a.device.type == "cpu" and there.any():
            exact = not (a.is_floating_point() or a.is_complex())
            error = (a.to(torch.float64) - b.to(torch.float64)).abs()[there].max().item()
            scale = b.to(torch.float64).abs()[there].max().item()
            if not error <= (0.0 if exact else bound * scale):
                return f"result {k} is off by {error:.2e} of {scale:.2e}"
    return ""


def described(value: Any) -> str:
    if isinstance(value, Tensor):
        strides = value.stride() if value.layout == torch.strided else value.layout
        return f"{value.dtype} {tuple(value.shape)} {strides} {value.device}"
    return f"[{', '.join(map(described, value))}]" if isinstance(value, (list, tuple)) else repr(value)[:80]


def judged(calls: list[Call], seed: int, error: Exception) -> str:
    """What to think of an error: the reference's operators may say of wrong tensors what PyTorch says."""
    name, _, inputs = draw(calls, seed)
    public = "::" not in name
    given = [*tensors([*inputs.values()])]
    plain = all(x.device.type == "cpu" and x.layout == torch.strided and not x.is_quantized for x in given)
    if not public and (not plain or backend.served_by(name.partition("::")[2]) == "reference"):
        return "refused"
    if not CLEAR.search(str(error)) or not isinstance(error, (ValueError, TypeError, RuntimeError)):
        return f"raises {type(error).__name__}: {error}"
    if public and isinstance(error, RuntimeError):  # not ours: it must be the arguments that are wrong, not a kernel
        with contextlib.suppress(Exception), backend.use_backend("reference"):
            run(calls, seed)
            return f"raises RuntimeError, where the reference gives a result: {error}"
    return "refused"


def attempt(calls: list[Call], seed: int) -> str:
    """ "refused", "agreed", or else what is wrong."""
    try:
        got = run(calls, seed)
    except Exception as error:
        return judged(calls, seed, error)
    name, _, inputs = draw(calls, seed)
    with backend.use_backend("reference"):
        try:
            want = run(calls, seed)
        except Exception as refusal:
            try:  # a kernel may take mixtures of dtypes that PyTorch refuses
                want = run(calls, seed, widen="::" in name)
            except Exception:
                return f"gives a result, where the reference raises {type(refusal).__name__}: {refusal}"
    bound = max(BOUND.get(x.dtype, 0.0) for x in tensors([*inputs.values(), *got]))
    return difference(got, want, bound) or "agreed"


def main(op: str, first: int, count: int) -> None:
    warnings.simplefilter("ignore")
    calls = right_calls(op)
    outcomes = Counter[str]()
    for seed in range(first, first + count):
        print(f"seed {seed}: ", end="", flush=True)
        outcome = attempt(calls, seed)
        outcomes[outcome] += 1
        if outcome not in ("refused", "agreed") or count == 1:
            name, _, inputs = draw(calls, seed)
            print(f"{outcome}\n  {name}({', '.join(f'{k}={described(v)}' for k, v in inputs.items())})")
        else:
            print(outcome)
    print(f"refused {outcomes['refused']}, agreed {outcomes['agreed']} of {count}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1)
