"""A reference that is missing, refuses, or crashes: a sentence for the user, and no harm done."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from llama_ckpt.capture import capture, require_reference
from llama_ckpt.capture.launch import run_recorder
from llama_ckpt.capture.recorder import _write
from llama_ckpt.capture.request import Request, read_requests, write_requests
from llama_ckpt.errors import (
    DeviceError,
    ModelFileError,
    OptionError,
    ReferenceCrashedError,
    ReferenceError,
    ReferenceMissingError,
)
from tests.capture.small_models import SmallLlama, write_small_llama


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A sound model."""
    return write_small_llama(tmp_path / "sound.gguf", SmallLlama())


def package(folder: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a package called `llama_cpp`, here and for every process that is started."""
    (folder / "llama_cpp").mkdir()
    (folder / "llama_cpp" / "__init__.py").write_text(source)
    (folder / "llama_cpp" / "llama_cpp.py").write_text("")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)


def test_a_missing_reference_is_named_with_the_line_that_installs_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)  # Python's own way to say: not there
    with pytest.raises(
        ReferenceMissingError, match=r"not installed; .*pip install llama-cpp-python==0\.3\.36"
    ):
        require_reference()
    with pytest.raises(ReferenceMissingError):
        capture(model, tokens=[1], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_recording_that_finds_no_room_is_no_crash(tmp_path: Path) -> None:
    """What cannot be written, on a full disk or in a folder that went, is said by the recorder itself."""
    with pytest.raises(OptionError, match=r"the recording of 16 bytes cannot be kept in .*TMPDIR names"):
        _write(tmp_path / "gone" / "0.safetensors", {"embd": np.zeros(4, np.float32)})


ENDINGS = {
    "signal": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL after: nothing on stderr"),
    "bad instruction": (
        "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
        "SIGILL .*; build it for fewer instructions: CMAKE_ARGS=.* pip install",
    ),
    "exception": (
        "raise RuntimeError('no libggml.so')",
        r"exit code 1 after: .*RuntimeError: no libggml\.so",
    ),
    "exit": ("import sys; print('giving up'); sys.exit(3)", "exit code 3 after: giving up"),
}


@pytest.mark.parametrize(("source", "message"), ENDINGS.values(), ids=ENDINGS)
def test_however_the_reference_ends_the_caller_gets_a_sentence(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    """A broken package is no missing one, and what it does to its process is not done to ours."""
    package(tmp_path, source, monkeypatch)
    with pytest.raises(ReferenceCrashedError, match=f"crashed in its own process, recording .*{message}"):
        capture(model, tokens=[1], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_model_never_reaches_the_reference(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes([3]) + bytes(10))
    with pytest.raises(ModelFileError):
        capture(tmp_path / "a.gguf", tokens=[1], out=tmp_path / "out")


@pytest.mark.llama_cpp
def test_an_assertion_of_llama_cpp_is_reported(tmp_path: Path) -> None:
    """llama.cpp aborts on values narrower than keys; the file itself is sound."""
    model = write_small_llama(tmp_path / "narrow.gguf", SmallLlama(value_length=4))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(
        ReferenceCrashedError, match=r"recording .*narrow\.gguf: got SIGABRT after: .*GGML_ASSERT"
    ):
        run_recorder([Request(str(model), token_ids=(1, 5))], scratch)
    # And the next recording in the same process works.
    sound = write_small_llama(tmp_path / "sound.gguf", SmallLlama())
    assert capture(sound, tokens=[1], out=tmp_path / "out").token_ids == (1,)


@pytest.mark.llama_cpp
def test_a_model_that_llama_cpp_refuses_is_reported_in_its_words(model: Path, tmp_path: Path) -> None:
    model.write_bytes(model.read_bytes()[:-1000])
    with pytest.raises(
        ReferenceError, match=r"llama\.cpp refuses .*sound\.gguf: got .*not within the file bounds"
    ):
        run_recorder([Request(str(model), token_ids=(1,))], tmp_path)


@pytest.mark.llama_cpp
def test_a_gpu_that_this_build_has_not_is_named(model: Path, tmp_path: Path) -> None:
    from llama_ckpt.capture.library import load_library

    if load_library().gpu_name() is not None:
        pytest.skip("this llama.cpp was built for a GPU")
    with pytest.raises(DeviceError, match="blocks on a GPU: got a llama.cpp built for none"):
        capture(model, tokens=[1], out=tmp_path / "out", n_gpu_layers=99)


@pytest.mark.llama_cpp
def test_a_folder_of_the_users_called_like_ours_is_not_imported(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama_ckpt").mkdir()
    (tmp_path / "llama_ckpt" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    assert capture(model, tokens=[1], out="out").token_ids == (1,)
    assert (tmp_path / "out" / "manifest.json").exists()


def test_requests_survive_their_file(tmp_path: Path) -> None:
    requests = [
        Request("a.gguf", prompt="Hé\udcff", blocks=()),
        Request("b.gguf", token_ids=(1, 2), positions_from=4000, max_tokens=3, blocks=(0, 2), n_gpu_layers=9),
    ]
    write_requests(requests, tmp_path / "requests.json")
    assert read_requests(tmp_path / "requests.json") == requests
