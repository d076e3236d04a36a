"""The documentation as a site: every page is in its contents, and the first dump is what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safetensors import safe_open

import llama_ckpt as lc
from llama_ckpt.report.comparison import comparison_lines
from tools.site_hooks import on_page_markdown
from tools.transcripts import settled

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_every_page_is_in_the_contents_once() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    named = re.findall(r"([\w/.-]+\.md)$", nav, re.M)
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert len(set(named)) == len(named) and set(named) <= pages
    # A model measured at full size has a page as soon as it is; the others are written by hand.
    assert all(page.startswith("full_size_") for page in pages - set(named))


def test_anchors_of_the_pages_lead_somewhere() -> None:
    for path in DOCS.glob("*.md"):
        for target, anchor in re.findall(r"\]\(([\w/]+\.md)#([\w-]+)\)", path.read_text(encoding="utf-8")):
            headings = re.findall(r"^#+ (.*)$", (path.parent / target).read_text(encoding="utf-8"), re.M)
            assert anchor in [slug(one) for one in headings], f"{path.name}: {target}#{anchor}"


def slug(heading: str) -> str:
    """As Markdown's table of contents names a heading."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def test_pictures_are_there_described_and_small() -> None:
    shown = [
        found
        for page in DOCS.rglob("*.md")
        for found in re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", page.read_text("utf-8"))
    ]
    assert all(len(said) > 20 for said, _ in shown if not _.endswith(".svg"))
    pictures = {path.name: path.stat().st_size for path in (DOCS / "images").iterdir()}
    assert len(pictures) == 3 and max(pictures.values()) <= 20_000
    assert set(pictures) <= {Path(target).name for _, target in shown}


def test_links_out_of_the_pages_become_names() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="checkpoints/c01.md"))
    text = "[norm](../../checkpoints/c01.py) and [words](../glossary.md#own), [top](#x), [web](https://a.b/c)"
    wanted = "`norm` and [words](../glossary.md#own), [top](#x), [web](https://a.b/c)"
    assert on_page_markdown(text, page) == wanted


def test_the_first_dump_is_as_the_page_says(tmp_path: Path, monkeypatch: Any) -> None:
    """The program, what the reports of it show, and the steps that lead to the name of its bug."""
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "first_dump.md").read_text("utf-8")
    code, plain = re.findall(r"```python\n(.*?)```", page, re.S)
    first, last = re.findall(r"```\n(first wrong .*?)```", page, re.S)
    names: dict[str, Any] = {}
    for kept, shown in (("", first), ('"attn_context"', ""), ('"attn_context", "q_rope"', last)):
        assert not kept or f"`kept = [{kept}]`" in page
        exec(code.replace("kept = []", f"kept = [{kept}]"), names)
        found = lc.compare("mine.safetensors")
        lines = ["".join(part for part, _ in line) for line in comparison_lines(found, verbose=False)]
        assert set(settled(shown)) - {""} <= set(settled("\n".join(lines)))
        assert (
            found.record_next is not None
            and f"record {found.record_next} next" in page
            or kept.endswith('q_rope"')
        )
    exec(code.replace("np.arange(8) * 2 ", "np.arange(8) + 1 "), names)
    assert lc.compare("mine.safetensors").passed, "as the page says of positions that are one too large"
    with safe_open("mine.safetensors", "np") as file:
        names["tensors"] = {name: file.get_tensor(name) for name in file.keys()}
    exec(plain, names)
    assert lc.compare("mine.safetensors").passed
