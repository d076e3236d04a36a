"""Makes the two committed stand-ins and records llama.cpp on them again.

    python -m tools.make_stand_ins [FOLDER]        reference_dumps without it

    llama-3      a byte-level BPE vocabulary cut as Llama 3's is, RoPE's divisors, grouped heads, tied output
    mixture      a mixture of three experts, two of which compute a token

Small models of the shapes of Llama 3.2 and Mixtral, so that what these have is held against llama.cpp's
recorded tensors where llama.cpp is not installed. Weights and vocabulary are made from seeds.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from llama_ckpt.capture import Take, capture_takes
from llama_ckpt.dumps.reference import DumpSet, open_dumps, write_dump
from llama_ckpt.making.seeded_model import make_seeded
from llama_ckpt.tokens.bpe import BYTE_CHARACTERS
from reference_dumps import embedded_model
from tools.random_bpe_vocabulary import random_bpe_vocabulary
from tools.random_vocabulary import KEY, write_vocabulary

__all__ = ["STAND_INS", "bpe_vocabulary", "make"]

ROOT: Final = Path(__file__).resolve().parents[1] / "reference_dumps"

STAND_INS: Final[Mapping[str, Mapping[str, Any]]] = {
    "llama-3": {
        **{"width": 32, "n_heads": 2, "n_kv_heads": 1, "ffn": 32, "n_layers": 2, "tied_output": True},
        **{"context_length": 131072, "rope_theta": 5e5, "llama3_factor": 32.0, "vocab": 288},
    },
    "mixture": {
        **{"width": 32, "n_heads": 4, "n_kv_heads": 2, "ffn": 16, "n_layers": 1, "tied_output": True},
        **{"rope_theta": 1e6, "n_experts": 3, "n_experts_used": 2, "vocab": 264},
    },
}
"""What `make_seeded` makes them of."""

PROMPTS: Final = {"llama-3": "I'm 12", "mixture": "Noah"}

_TEXTS = (
    "It's 1984: don't they say so? They'll see, I'm sure that we've been there.",
    "And God said, Let there be light: and there was light. 12345 and 678,90",
    "The naïve café — déjà vu, in the beginning of the 21st century.\n\n  And so on.",
)


def bpe_vocabulary(path: Path) -> None:
    """A vocabulary of Llama 3's kind: every byte, a few merges of words, its marks of a text's ends."""
    words = [text.encode() for text in _TEXTS]
    learned = random_bpe_vocabulary(random.Random(3), words, "llama-bpe")
    merges = list(dict.fromkeys(learned[KEY + "merges"]))[:30]
    tokens = [*(character.encode() for character in BYTE_CHARACTERS.values())]
    tokens += [joined for merge in merges if (joined := merge.replace(b" ", b"")) not in tokens]
    tokens = list(dict.fromkeys(tokens))[:286]
    specials = [b"<|begin_of_text|>", b"<|end_of_text|>"]
    kept = [merge for merge in merges if merge.replace(b" ", b"") in tokens]
    metadata = {
        KEY + "model": "gpt2",
        KEY + "pre": "llama-bpe",
        KEY + "tokens": [*specials, *tokens],
        KEY + "token_type": [3, 3] + [1] * len(tokens),
        KEY + "merges": kept,
        KEY + "bos_token_id": 0,
        KEY + "eos_token_id": 1,
    }
    write_vocabulary(path, metadata)


def make(folder: Path) -> None:
    """Write both, and what llama.cpp computes with them."""
    for name, sizes in STAND_INS.items():
        out = folder / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as scratch:
            vocabulary = embedded_model()
            if name == "llama-3":
                vocabulary = Path(scratch) / "vocabulary.gguf"
                bpe_vocabulary(vocabulary)
            make_seeded(out / "model.gguf", seed=1, type="F16", vocabulary=vocabulary, **sizes)
            take = Take(prompt=PROMPTS[name], name="prompt", max_tokens=16)
            capture_takes(out / "model.gguf", [take], out=Path(scratch) / "f16")
            _keep(open_dumps(Path(scratch) / "f16"), out / "f16")


def _keep(dumps: DumpSet, out: Path) -> None:
    """A dump without most of its settings of the sampler, which are half of so small a one."""
    entry, dump = dumps.entry("prompt"), dumps.dump("prompt")
    kept = replace(entry, sampling=entry.sampling[:2], penalized=())
    tensors: dict[str, Any] = {name: dump[name] for name in dump}
    for index in range(len(kept.sampling)):
        ids, values = dump.survivors(index)
        tensors |= {f"sampling.{index}.ids": ids, f"sampling.{index}.probabilities": values}
    write_dump(out, model=dumps.manifest.model, producer=dumps.manifest.producer, entry=kept, tensors=tensors)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT, help="where to write")
    make(parser.parse_args().folder)


if __name__ == "__main__":
    main()
