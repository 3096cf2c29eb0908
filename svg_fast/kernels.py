"""The compiled kernels, one module that attaches itself to the declared ops when it is imported; then Triton's."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import torch

from . import triton

logger = logging.getLogger("svg_fast")

_MODULE = "svg_fast._C"
_FACTS = ("compiler", "cpu_capabilities", "cpu_capability", "nvcc", "cuda_architectures", "left_out")


def load() -> None:
    """Attach the kernels, Triton's where no compiled one serves; see `load_compiled` and `triton.attach`."""
    load_compiled()
    triton.attach()


def load_compiled() -> None:
    """Attach the compiled kernels; where that cannot be, say so once, and the references serve instead.

    Raises ImportError where SVG_FAST_CPU_CAPABILITY names an instruction set that is not to be had, and where the
    kernels were built for ops of other arguments.
    """
    # In this folder and no other: an editable install of other sources would lend kernels of other ops.
    if PathFinder.find_spec(_MODULE, [str(Path(__file__).parent)]) is None:
        logger.warning(
            "svg_fast was installed without compiled kernels: the slower references serve every op"
            " (`pip install --verbose` tells why)"
        )
        return
    try:
        module = importlib.import_module(_MODULE)
    except ImportError as error:
        if os.environ.get("SVG_FAST_CPU_CAPABILITY"):
            raise  # a wish that cannot be met is not passed over
        logger.warning("the compiled kernels do not load, the slower references serve every op: %s", error)
    else:
        check_signatures(module.signatures)


def check_signatures(signatures: list[tuple[str, str]]) -> None:
    """Hold the types of compiled kernels against the declared ones: a call looks at none, and would crash.

    Raises ImportError where they differ: the kernels are those of other sources.
    """
    for name, built in signatures:
        op = getattr(torch.ops.svg_fast, name, None)
        declared = "nothing"
        if op is not None:
            schema = op.default._schema
            takes, gives = (", ".join(str(x.type) for x in part) for part in (schema.arguments, schema.returns))
            declared = f"({takes}) -> ({gives})"
        if built != declared:
            raise ImportError(
                "the compiled kernels belong to other sources, svg_fast must be installed again:"
                f" {name} was built as {built} and is declared as {declared}"
            )


def build_info() -> dict[str, Any]:
    """Facts about the compiled kernels, as the build found them; empty where there are none.

    compiler; cpu_capabilities, the instruction sets compiled for; cpu_capability, the one in use: the widest that the
    CPU has, or what the environment variable SVG_FAST_CPU_CAPABILITY names before svg_fast is imported; nvcc, its path
    or "not found"; cuda_architectures; left_out, what was not built and why.
    """
    module = sys.modules.get(_MODULE)
    if module is None:
        return {}
    return {name: getattr(module, name) for name in _FACTS}
