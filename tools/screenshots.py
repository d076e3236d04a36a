"""Photographs of three pages for docs/reports.md: a dump that passes, one that fails, three side by side.

    python -m tools.screenshots          needs a Chromium, such as Debian's package `chromium`

Written anew where a page looks different; look at them before they are committed.
"""

from __future__ import annotations

import base64
import contextlib
import sys
import tempfile
from pathlib import Path

from llama_ckpt.comparing.compare_dump import compare_dump
from llama_ckpt.comparing.side_by_side import side_by_side
from llama_ckpt.judging.to_precision import to_bfloat16
from llama_ckpt.results import Result
from tests.comparing.their_programs import EIGHT, bug, right_run, run, write
from tools.browser import Browser
from tools.palette_png import few_colours

__all__ = ["results"]

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WIDTH, HEIGHT, SCALE = 800, 1040, 0.7
"""What is shown of each page, in CSS pixels, and how large: letters stay legible in less than 20 KB."""


def results() -> dict[str, Result]:
    """What is photographed, by the name of its picture; the dumps are written into the current folder."""
    facts = {"token_ids": EIGHT, "positions": range(8), "producer": "mine 0.3"}
    runs = {
        "right": dict(right_run(EIGHT)),
        "wrong": run(EIGHT, wrong=bug("rope-half-split"), blocks=[7]),
        "half": {name: to_bfloat16(x) for name, x in right_run(EIGHT).items()},
    }
    found = {}
    for name, tensors in runs.items():
        path = write(Path(), tensors, **facts, dtype="bfloat16" if name == "half" else "float32")
        found[name] = compare_dump(path.rename("mine.safetensors"))
    right, wrong, half = found.values()
    several = side_by_side({"v1": right, "v2 in bfloat16": half, "v3": wrong})
    return {"report_passing": right, "report_failing": wrong, "report_several": several}


def main() -> int:
    """The command."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), Browser() as browser:
        for name, one in results().items():
            path = Path(f"{name}.html")
            one.to_html(path)
            page = browser.open(path, width=WIDTH)
            clip = {"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT, "scale": SCALE}
            options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
            shot = browser.call("Page.captureScreenshot", page.session, **options)
            made = IMAGES / f"{name}.png"
            made.write_bytes(few_colours(base64.b64decode(shot["data"])))
            print(f"{made.name}: {made.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
