"""The engine does what llama.cpp did in the committed runs: chunks, single tokens, sequences, rollbacks."""

from __future__ import annotations

import pytest

from tests.engine.replayed_runs import replay, taken_back
from tests.kernels.interpreter import interpreter_failure, needs_triton


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["high", "fast"])
@pytest.mark.parametrize("check", [replay, taken_back])
def test_on_a_gpu(check: object, precision: str) -> None:
    assert callable(check)
    check(precision, "cuda")


@needs_triton
def test_in_the_interpreter() -> None:
    code = "from tests.engine.replayed_runs import replay; replay('high', 'cpu', only='taken-back')"
    assert not interpreter_failure(code)
