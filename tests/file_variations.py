"""Variations of small files beside llama.cpp: taken with the same numbers, or refused with a sentence.

    python -m tests.file_variations            make them, ask both, print the table; exits 1 where they part
    python -m tests.file_variations --write    the same, and write docs/file_variations.md

A file that is refused here and taken there is told with its reason; one that is taken here has to be taken
there, with the same logits. llama.cpp runs in a process of its own, in a fork for each file: some end it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.gguf_files import T, V, write_llama

TOKENS = [1, 300, 4, 77, 111, 9, 77]
SCALING = "llama.rope.scaling."
ALLOWED = {T.F32: 2e-5, T.F16: 5e-3, T.BF16: 3e-2}
"""How far llama.cpp's logits may be from those here: it rounds activations to the weights' type."""
QUANTIZED = 0.12


@dataclass(frozen=True)
class Row:
    """What became of a file: the distance of the logits where both took it, else who refused, and why."""

    name: str
    here: str
    there: str
    error: float | None
    allowed: float

    @property
    def agrees(self) -> bool:
        """Refused here with a sentence, or taken by both with the same numbers."""
        if self.here:
            return len(self.here) > 20
        return not self.there and self.error is not None and self.error < self.allowed


def ones(n: int) -> Any:
    return np.ones(n, np.float32)


def drawn(*shape: int) -> Any:
    return (np.random.default_rng(sum(shape)).standard_normal(shape) / 4).astype(np.float32)


def keyed(prefix: str = "llama.", **values: Any) -> dict[str, Any]:
    """Keys with their kinds: text, whole numbers, fractions, or lists of whole numbers."""

    def kind(value: Any) -> tuple[Any, ...]:
        if isinstance(value, list):
            return (value, V.ARRAY, V.UINT32)
        kinds = {str: V.STRING, bool: V.BOOL, int: V.UINT32, float: V.FLOAT32}
        return (value, kinds[type(value)])

    names = {name.replace("__", "."): value for name, value in values.items()}
    return {"keys": {prefix + name: kind(value) for name, value in names.items()}}


def scaled(**values: Any) -> dict[str, Any]:
    return keyed(SCALING, **values)


def both_blocks(**tensors: Any) -> dict[str, Any]:
    """Tensors of both blocks, by their names without the number and with `__` for a dot."""
    named = {name.replace("__", "."): value for name, value in tensors.items()}
    return {"tensors": {f"blk.{n}.{name}": value for n in range(2) for name, value in named.items()}}


def lists(*names: str, n: int = 8) -> dict[str, Any]:
    return {f"{name}.weight": 1 + np.abs(drawn(n)) for name in names}


LONG = lists("rope_factors_long", "rope_factors_short")
FUSED = {
    "attn_q__weight": None,
    "attn_k__weight": None,
    "attn_v__weight": None,
    "attn_qkv__weight": drawn(128, 64),
}
BIASES = {
    "attn_q": 64,
    "attn_k": 32,
    "attn_v": 32,
    "attn_output": 64,
    "ffn_gate": 96,
    "ffn_up": 96,
    "ffn_down": 64,
}
ROUTED = {
    **{f"ffn_{name}__weight": None for name in ("gate", "up", "down")},
    "ffn_gate_inp__weight": drawn(4, 64),
}

VARIATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no grouped heads": {"n_kv_heads": 4},
    "one key head": {"n_kv_heads": 1},
    "head size of its own": {"head_dim": 32},
    "odd feed-forward": {"ffn": 90},
    "one block": {"n_layers": 1},
    "tied output": {"tied_output": True},
    "epsilon 1e-6": {"rms_norm_eps": 1e-6},
    "theta 1e6": {"rope_theta": 1e6},
    **{f"all {t.name}": {"type": t} for t in (T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1)},
    **{
        f"all {t.name}": {"type": t, "width": 256, "ffn": 512}
        for t in (T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K)
    },
    "scaling none": scaled(type="none", factor=4.0),
    "scaling linear": scaled(type="linear", factor=4.0),
    "scaling of no type": scaled(factor=4.0),
    "scaling by 0": scaled(type="linear", factor=0.0),
    "the old key of linear scaling": keyed(rope__scale_linear=4.0),
    "an attention factor": scaled(attn_factor=1.3),
    "YaRN": scaled(type="yarn", factor=4.0, original_context_length=64),
    "YaRN without its context": scaled(type="yarn", factor=4.0),
    "YaRN's betas": scaled(type="yarn", factor=8.0, yarn_beta_fast=2.0, yarn_beta_slow=0.5),
    "YaRN with a factor": scaled(type="yarn", factor=4.0, attn_factor=1.3),
    "YaRN's other factor": scaled(type="yarn", factor=4.0, yarn_attn_factor=1.3),
    "half of YaRN": scaled(type="yarn", factor=4.0, yarn_ext_factor=0.5),
    "YaRN by linear": scaled(type="linear", factor=4.0, yarn_ext_factor=1.0),
    "YaRN's betas, far": scaled(
        type="yarn", factor=4.0, original_context_length=2048, yarn_beta_fast=16.0, yarn_beta_slow=2.0
    ),
    "YaRN's logarithm": scaled(type="yarn", factor=4.0, yarn_log_multiplier=0.5),
    "LongRoPE, short": scaled(type="longrope", original_context_length=512) | {"tensors": LONG},
    "LongRoPE, one list": scaled(type="longrope") | {"tensors": lists("rope_factors_long")},
    "LongRoPE's lists without it": {"tensors": LONG},
    "a scaling of no known name": scaled(type="dynamic", factor=2.0),
    "Llama 3's divisors": {"tensors": lists("rope_freqs")},
    "divisors and linear scaling": scaled(type="linear", factor=2.0) | {"tensors": lists("rope_freqs")},
    "divisors of another length": {"tensors": lists("rope_freqs", n=7)},
    "divisors beside LongRoPE's": scaled(type="longrope") | {"tensors": {**LONG, **lists("rope_freqs")}},
    "half of a head turned": keyed(rope__dimension_count=8),
    **{f"bias of {name}": both_blocks(**{f"{name}__bias": drawn(n)}) for name, n in BIASES.items()},
    "all biases": both_blocks(**{f"{name}__bias": drawn(n) for name, n in BIASES.items()}),
    "a bias of one block": {"tensors": {"blk.1.attn_q.bias": drawn(64)}},
    "Q, K and V in one": both_blocks(**FUSED),
    "Q, K and V in one, biased": both_blocks(**FUSED, attn_qkv__bias=drawn(128)),
    "Q, K and V in one and apart": both_blocks(attn_qkv__weight=drawn(128, 64)),
    "norms of Q": both_blocks(attn_q_norm__weight=ones(16)),
    "biases of other blocks": {
        "tensors": {
            "blk.0.attn_k.bias": drawn(32),
            "blk.1.ffn_down.bias": drawn(64),
            "blk.1.ffn_up.bias": drawn(96),
        }
    },
    "a bias beyond the blocks": {"tensors": {"blk.2.attn_q.bias": drawn(64)}},
    "experts": {"n_experts": 4},
    "experts, one of them": {"n_experts": 3, "n_used": 1},
    "experts, all of them": {"n_experts": 3, "n_used": 3},
    "experts in Q8_0": {"n_experts": 4, "type": T.Q8_0},
    "experts and biases of attention": {"n_experts": 4} | both_blocks(attn_q__bias=drawn(64)),
    "experts and biases of theirs": {"n_experts": 4} | both_blocks(ffn_gate_exps__bias=drawn(4, 96)),
    "experts and a bias of none": {"n_experts": 4} | both_blocks(ffn_up__bias=drawn(96)),
    "experts whose weights are scaled": {"n_experts": 4} | keyed(expert_weights_scale=2.5),
    "experts by sigmoid": {"n_experts": 4} | keyed(expert_gating_func=2),
    "experts of another width": {"n_experts": 4} | keyed(expert_feed_forward_length=48),
    "experts in groups": {"n_experts": 4} | keyed(expert_group_count=2, expert_group_used_count=1),
    "experts in one group": {"n_experts": 4} | keyed(expert_group_count=1, expert_group_used_count=1),
    "experts for every token": {"n_experts": 4} | both_blocks(ffn_up_shexp__weight=drawn(32, 64)),
    "an expert each its tensor": keyed(expert_count=2, expert_used_count=1)
    | both_blocks(
        **{f"ffn_{name}__weight": None for name in ("gate", "up", "down")},
        **{f"ffn_{name}__{n}__weight": drawn(96, 64) for name in ("gate", "up") for n in range(2)},
        **{f"ffn_down__{n}__weight": drawn(64, 96) for n in range(2)},
        ffn_gate_inp__weight=drawn(2, 64),
    ),
    "more experts used than there are": {"n_experts": 4, "n_used": 5},
    "no expert used": {"n_experts": 4, "n_used": 0},
    "no key of experts used": {"n_experts": 4, "omit_keys": ["llama.expert_used_count"]},
    "experts used of none": keyed(expert_used_count=2),
    "a list of experts used": {"n_experts": 4} | keyed(expert_used_count=[2, 2]),
    "a router of another size": {"n_experts": 4} | both_blocks(ffn_gate_inp__weight=drawn(3, 64)),
    "a router without experts": keyed(expert_count=4, expert_used_count=2) | both_blocks(**ROUTED),
    "experts in the keys alone": keyed(expert_count=4, expert_used_count=2),
    "no key of epsilon": {"omit_keys": ["llama.attention.layer_norm_rms_epsilon"]},
    "no key of the context": {"omit_keys": ["llama.context_length"]},
    "no key of the heads": {"omit_keys": ["llama.attention.head_count"]},
    "no key of the width": {"omit_keys": ["llama.embedding_length"]},
    "no key of theta": {"omit_keys": ["llama.rope.freq_base"]},
    "no key of the vocabulary's size": {"omit_keys": ["llama.vocab_size"]},
    "no key of turned features": {"omit_keys": ["llama.rope.dimension_count"]},
    "fewer blocks than tensors": keyed(block_count=1),
    "more blocks than tensors": keyed(block_count=3),
    "a list of one feed-forward": keyed(feed_forward_length=[96, 96]),
    "a list that is too short": keyed(feed_forward_length=[96]),
    "a list of key heads": keyed(attention__head_count_kv=[2, 2]),
    "no heads": keyed(attention__head_count=0),
    "key heads that do not divide": keyed(attention__head_count_kv=3),
    "key length alone": keyed(attention__key_length=32),
    "a window that slides": keyed(attention__sliding_window=4),
    "a scale of the logits": keyed(logit_scale=0.5),
    "a scale of attention": keyed(attention__scale=0.5),
    "a scale of the embedding": keyed(embedding_scale=2.0),
    "a scale of the residual": keyed(residual_scale=0.5),
    "a pattern of windows": keyed(attention__sliding_window=4, attention__sliding_window_pattern=2),
    "a cap of the logits": keyed(final_logit_softcapping=30.0),
    "a parallel residual": keyed(use_parallel_residual=True),
    "no causal mask": keyed(attention__causal=False),
    "a tensor too many": {"tensors": {"extra.weight": ones(64)}},
    "a norm missing": {"tensors": {"blk.1.ffn_norm.weight": None}},
    "the last norm missing": {"tensors": {"output_norm.weight": None}},
    "the embedding missing": {"tensors": {"token_embd.weight": None}},
    "a matrix of another shape": {"tensors": {"blk.0.attn_k.weight": drawn(16, 64)}},
    "a norm of another length": {"tensors": {"blk.0.attn_norm.weight": ones(32)}},
    "another architecture": {"architecture": "qwen2"},
    "no vocabulary": {
        "keys": {"tokenizer.ggml.model": ("none", V.STRING)},
        "omit_keys": [f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type")],
    },
}
"""Each a name and the arguments of `write_llama`."""


def make(folder: Path) -> dict[str, Path]:
    """All files, by the names of their variations."""
    return {
        name: write_llama(folder / f"{number:02}.gguf", **options)
        for number, (name, options) in enumerate(VARIATIONS.items())
    }


def rows(folder: Path) -> Iterator[Row]:
    """Ask both about every variation."""
    files = make(folder)
    theirs = _llama_cpp(folder, list(files.values()))
    for name, path in files.items():
        ours, there = _here(path), theirs[path.name]
        allowed = ALLOWED.get(VARIATIONS[name].get("type", T.F32), QUANTIZED)
        error = None
        if not isinstance(ours, str) and not isinstance(there, str):
            wanted = np.asarray(there)
            error = float(np.linalg.norm(ours - wanted) / np.linalg.norm(wanted))
        said = (one if isinstance(one, str) else "" for one in (ours, there))
        yield Row(name, *said, error, allowed)


def _here(path: Path) -> Any:
    import llama_ckpt
    from llama_ckpt.errors import LlamaCkptError

    try:
        return llama_ckpt.load(path, device="cpu").logits(TOKENS)[-1].numpy()
    except LlamaCkptError as error:
        return str(error).replace(f"{path}: ", "")


def _llama_cpp(folder: Path, paths: list[Path]) -> Mapping[str, Any]:
    """llama.cpp's logits after the last token, or the last thing that it said."""
    out = folder / "theirs.json"
    command = [sys.executable, "-m", "tests.file_variations", "--ask", str(out), *map(str, paths)]
    quiet = os.environ | {"GGML_NO_BACKTRACE": "1"}  # without ggml's call of a debugger
    subprocess.run(command, check=True, capture_output=True, env=quiet)
    found: Mapping[str, Any] = json.loads(out.read_text())
    return found


def _ask(out: Path, paths: list[Path]) -> None:
    from llama_ckpt.capture.library import load_library

    library, found = load_library(), {}  # once, before the forks
    for path in paths:
        answer = path.with_suffix(".json")
        if (child := os.fork()) == 0:
            _in_fork(partial(_their_logits, library, path), answer)
        os.waitpid(child, 0)
        found[path.name] = json.loads(answer.read_text()) if answer.exists() else "it ended the process"
    out.write_text(json.dumps(found))


def _in_fork(work: Callable[[], Any], answer: Path) -> None:
    try:
        answer.write_text(json.dumps(work()))
    finally:
        os._exit(0)


def _their_logits(library: Any, path: Path) -> Any:
    api = library.api
    params = api.llama_model_default_params()
    params.use_extra_bufts = False
    model = api.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        return " ".join(library.complaints[-2:]) or "refused"
    settings = api.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch = 64, 1, 1
    settings.type_k = settings.type_v = 0
    settings.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = api.llama_init_from_model(model, settings)
    if not context:
        return " ".join(library.complaints[-2:]) or "no context"
    tokens = (api.llama_token * len(TOKENS))(*TOKENS)
    if api.llama_decode(context, api.llama_batch_get_one(tokens, len(TOKENS))):
        return "llama_decode failed"
    size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    logits = np.ctypeslib.as_array(api.llama_get_logits_ith(context, -1), (size,))
    return [float(one) for one in logits]


PAGE = Path(__file__).parents[1] / "docs" / "file_variations.md"
HEAD = """\
# Variations of files beside llama.cpp

Small GGUF files of architecture `llama`, each with something changed, given to this program and to llama.cpp
(`python -m tests.file_variations --write` made this table; the suite makes it again where llama.cpp is
installed). What both take has the same logits: the distance is of the last token's, relative; llama.cpp
rounds activations to a quantized matrix's type, which is the 1e-2 there. What is refused here is refused with
the sentence that stands in the table. None of {n} is taken here and refused there.

| file | distance | refused here | refused there |
| --- | --- | --- | --- |
"""


def page(table: list[Row]) -> str:
    """The table as a page."""
    lines = []
    for row in table:
        distance = "" if row.error is None else f"{row.error:.0e}"
        said = row.here.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {row.name} | {distance} | {said} | {'yes' if row.there else ''} |")
    return HEAD.format(n=len(table)) + "\n".join(lines) + "\n"


def main() -> None:
    """Print the table."""
    if sys.argv[1:2] == ["--ask"]:
        _ask(Path(sys.argv[2]), [Path(one) for one in sys.argv[3:]])
        return
    with tempfile.TemporaryDirectory() as scratch:
        table = list(rows(Path(scratch)))
    for row in table:
        state = "refused" if row.here else f"{row.error:.1e}" if row.error is not None else "taken"
        there = f"llama.cpp: {row.there[:60]}" if row.there else "llama.cpp takes it" if row.here else ""
        print(f"{'  ' if row.agrees else '! '}{row.name:<34}{state:<9}{row.here[:110]}  {there}".rstrip())
    apart = [row.name for row in table if not row.agrees]
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page(table), encoding="utf-8")
    print(f"{len(table)} variations, {len(apart)} on which the two part")
    sys.exit(bool(apart))


if __name__ == "__main__":
    main()
