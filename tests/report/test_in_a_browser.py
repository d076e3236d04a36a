"""The pages in a real browser: quiet, no wider than the window, not too long, legible in light and dark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.side_by_side import side_by_side
from llama_ckpt.ladder.climb import validate
from tests.comparing.their_programs import EIGHT, bug, right_run, run, write
from tools.browser import Browser, Page, chromium

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium is installed")

SCREEN = 800
PAGES = ("passing", "failing", "several", "ladder")


def wrong_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    facts = {"token_ids": EIGHT, "positions": range(8), "producer": "w" * 300}
    wrong = run(EIGHT, wrong=bug("rope-half-split"), blocks=[7])
    del wrong["blk.30.ffn_up"]
    right, failing = (compare_dump(write(folder, tensors, **facts)) for tensors in (right_run(EIGHT), wrong))
    several = side_by_side({"before": right, "after, with a long name of its own " * 3: failing, "b": right})
    found = {name: folder / f"{name}.html" for name in PAGES}
    ladder = validate("1", implementation=wrong_norm, device="cpu", maps=True)
    for name, one in zip(PAGES, (right, failing, several, ladder), strict=True):
        one.to_html(found[name])
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        try:
            running.call("Browser.getVersion")
        except (OSError, EOFError) as error:
            pytest.skip(f"the Chromium that is installed does not start: {error}")
        yield running


def size(page: Page, which: str) -> int:
    return int(page.ask(f"document.documentElement.scroll{which}"))


@pytest.mark.parametrize("name", PAGES)
def test_it_is_quiet_and_never_wider_than_the_window(
    name: str, pages: dict[str, Path], browser: Browser
) -> None:
    for width in (400, 1280):
        page = browser.open(pages[name], width=width, height=SCREEN)
        assert size(page, "Width") == width
        page.ask("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert size(page, "Width") == width, "with everything unfolded"
        assert page.ask("document.querySelectorAll('nav a').length") >= 3
        dead = (
            "[...document.querySelectorAll('a')].filter(a => !document.querySelector(a.getAttribute('href')))"
        )
        assert page.ask(f"{dead}.length") == 0
        assert page.complaints == []


@pytest.mark.parametrize("name", ["failing", "ladder"])
def test_a_failing_page_is_six_screens_on_a_phone(
    name: str, pages: dict[str, Path], browser: Browser
) -> None:
    page = browser.open(pages[name], width=400, height=SCREEN)
    assert size(page, "Height") <= 6 * SCREEN
    shown = "document.querySelector('h1').getBoundingClientRect()"
    assert page.ask(f"{shown}.bottom") < SCREEN / 2, "the verdict and the bug stand on the first screen"


CONTRAST = """
(() => {
  const light = colour => {
    const parts = colour.match(/[0-9.]+/g).slice(0, 3).map(one => one / 255);
    const [r, g, b] = parts.map(one => one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = one => {
    for (; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (!colour.endsWith(', 0)')) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const texts = 'h1, h2, p, td, dd, dt, li, a, small, summary, .badge, .letter';
  const worst = [...document.querySelectorAll(texts)]
    .filter(one => one.textContent.trim() && one.checkVisibility())
    .map(one => {
      const pair = [light(getComputedStyle(one).color), light(ground(one))].sort((a, b) => b - a);
      return [(pair[0] + 0.05) / (pair[1] + 0.05), one.outerHTML.slice(0, 80)];
    });
  return worst.sort((a, b) => a[0] - b[0])[0];
})()
"""
"""The text that stands out least: its contrast with what is behind it, as WCAG 2 defines that."""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_every_text_stands_out(name: str, dark: bool, pages: dict[str, Path], browser: Browser) -> None:
    page = browser.open(pages[name], width=400, height=SCREEN, dark=dark)
    ground = re.findall(r"\d+", page.ask("getComputedStyle(document.body).backgroundColor"))
    assert (int(ground[0]) < 60) == dark
    contrast, where = page.ask(CONTRAST)
    assert contrast >= 4.5, where
    assert page.complaints == []


@pytest.mark.parametrize("name", PAGES)
def test_it_prints_with_everything_unfolded(name: str, pages: dict[str, Path], browser: Browser) -> None:
    page = browser.open(pages[name], width=1280, height=SCREEN)
    printed = page.print()
    sheets = len(re.findall(rb"/Type\s*/Page\b", printed))
    assert printed.startswith(b"%PDF") and 2 <= sheets <= 60
    page.browser.call("Emulation.setEmulatedMedia", page.session, media="print")
    folded = "[...document.querySelectorAll('details td, details rect, details dt')]"
    hidden = f"{folded}.filter(one => !one.checkVisibility({{contentVisibilityAuto: true}}))"
    assert page.ask(f"{folded}.length") > 0
    assert any(page.ask(f"{hidden}.length") == 0 for _ in range(20)), "after some frames"


def test_what_a_page_does_wrong_is_seen(tmp_path: Path, browser: Browser) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<p style='width: 900px'>wide</p><img src='none.png'><script>throw 'no'</script>")
    page = browser.open(bad, width=400)
    assert size(page, "Width") >= 900
    assert any("none.png" in one or "ERR_FILE" in one for one in page.complaints)
    assert any("Uncaught" in one for one in page.complaints)
