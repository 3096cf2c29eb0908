"""Compiled kernels and declared ops belong together."""

from __future__ import annotations

import re
import sys

import pytest

from svg_fast import backend, kernels

FACTS = backend.build_info()


@pytest.mark.skipif(not FACTS, reason="no compiled kernels")
def test_every_kernel_tells_its_signature() -> None:
    told = {name for name, _ in sys.modules["svg_fast._C"].signatures}
    assert told == {op for op in backend.ops() if backend.served_by(op) == "kernel"}


@pytest.mark.parametrize(
    ("name", "built", "declared"),
    [
        ("gaussian_kl_fwd", "(Tensor) -> (Tensor)", "(Tensor, Tensor, Optional[Tensor], Optional[Tensor]) -> (Tensor)"),
        ("no_such_op", "() -> ()", "nothing"),
    ],
)
def test_kernels_of_other_sources_are_told(name: str, built: str, declared: str) -> None:
    message = f"must be installed again: {name} was built as {built} and is declared as {declared}"
    with pytest.raises(ImportError, match=re.escape(message)):
        kernels.check_signatures([(name, built)])


def test_a_signature_that_fits_is_accepted() -> None:
    kernels.check_signatures(
        [("batch_norm_act_fwd", "(Tensor, Tensor, Tensor, int, str, float, float) -> (Tensor, Tensor, Tensor)")]
    )
