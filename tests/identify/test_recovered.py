"""A few draws of each family, as tools/measure_identifiers.py draws them by the hundred."""

from __future__ import annotations

import pytest

from tests.draws import draws
from tools.measure_identifiers import FAMILIES, PAGE, measured


@pytest.mark.parametrize("name", FAMILIES)
def test_what_was_drawn_is_recovered(name: str) -> None:
    assert measured(name, draws(2, 20), seed=1) == []


def test_the_page_has_every_family() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"| {name} | " in text for name in FAMILIES)
