"""The compiled kernels: one library that attaches itself to the declared ops when it is loaded."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

logger = logging.getLogger("svg_fast")

_LIBRARY = Path(__file__).with_name("_kernels.so")


def load() -> None:
    """Attach the kernels; where that cannot be, say so once, and the references serve instead."""
    if not _LIBRARY.exists():
        logger.warning("svg_fast was installed without compiled kernels: the slower references serve every op")
        return
    try:
        torch.ops.load_library(_LIBRARY)
    except OSError as error:
        logger.warning("the compiled kernels do not load, the slower references serve every op: %s", error)
