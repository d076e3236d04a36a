"""The whole engine on the CPU, in Triton's interpreter: the GPU's kernels, a program at a time."""

from __future__ import annotations

import pytest

from tests.kernels.interpreter import interpreter_failure, needs_triton

pytestmark = needs_triton


@pytest.mark.parametrize(
    ("type", "precision", "n"),
    [
        *(("F16", precision, n) for precision in ("fast", "high") for n in (2, 17, 40)),
        *(("Q4_0", precision, n) for precision in ("fast", "high") for n in (1, 20)),
        ("Q8_0", "high", 33),
        ("F32", "high", 17),
    ],
)
def test_every_point_is_that_of_the_layers(type: str, precision: str, n: int) -> None:
    code = f"from tests.engine.interpreted_engine import points; points({type!r}, {precision!r}, {n})"
    assert not interpreter_failure(code)


@pytest.mark.parametrize("precision", ["fast", "high"])
@pytest.mark.parametrize("type", ["F16", "Q4_0"])
def test_a_prompt_rounds_as_its_profile_says(type: str, precision: str) -> None:
    code = f"from tests.engine.interpreted_arithmetic import held; held({type!r}, {precision!r}, 17)"
    assert not interpreter_failure(code)


@pytest.mark.parametrize("precision", ["fast", "high"])
def test_prompts_and_steps_are_one_sequence(precision: str) -> None:
    code = f"from tests.engine.interpreted_engine import sequence; sequence('F16', {precision!r})"
    assert not interpreter_failure(code)


def test_they_are_with_attention_of_heads_that_share_keys() -> None:
    assert not interpreter_failure("from tests.engine.interpreted_engine import sequence_of_groups as s; s()")


@pytest.mark.parametrize("n", [1, 3])
def test_two_types_in_one_launch_are_as_in_two(n: int) -> None:
    assert not interpreter_failure(
        f"from tests.engine.interpreted_engine import mixed_types; mixed_types({n})"
    )


def test_generate_says_the_same_as_with_the_layers() -> None:
    assert not interpreter_failure("from tests.engine.interpreted_engine import text; text()")


@pytest.mark.parametrize("check", ["two_texts", "two_caches", "one_session_for_two_threads"])
def test_two_texts_never_mix(check: str) -> None:
    assert not interpreter_failure(f"from tests.engine.interpreted_engine import {check}; {check}()")
