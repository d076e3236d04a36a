"""A Hugging Face folder as the GGUF file of the same model: names, order of rows, configuration, vocabulary.

    gguf_of_folder(Path("Llama-3.2-1B"), Path("model.gguf"))

Matrices keep their types, float32, float16 or bfloat16; norms and biases become float32. Rows of Q and K
are put from `transformers`' order, where RoPE turns (i, i + head_dim / 2), into GGUF's: it turns neighbours.
"""

from __future__ import annotations

import atexit
import os
import shutil
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from llama_ckpt.errors import ModelFileError, UnsupportedModelError
from llama_ckpt.gguf.writing import TensorPlan, encode_rows, field, write_gguf
from llama_ckpt.hugging_face.checked import checked_config
from llama_ckpt.hugging_face.scaling import scaling_of, theta_of
from llama_ckpt.hugging_face.tensors import FolderTensor, StackedTensor, folder_tensors
from llama_ckpt.hugging_face.vocabulary import vocabulary_keys
from llama_ckpt.outside import quoted, whole_number
from llama_ckpt.weights.tensor_names import BIAS_OF, MODEL_TENSORS, block_tensor
from llama_ckpt.whole_files import scratch_folder

__all__ = ["gguf_of_folder", "model_file", "named_tensors", "pairs_from_halves"]

_BLOCK: Final = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "wq",
    "self_attn.k_proj": "wk",
    "self_attn.v_proj": "wv",
    "self_attn.o_proj": "wo",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "w_gate",
    "mlp.up_proj": "w_up",
    "mlp.down_proj": "w_down",
}
_EXPERT: Final = {"w1": "w_gate", "w3": "w_up", "w2": "w_down"}
_MODEL: Final = {
    "model.embed_tokens.weight": MODEL_TENSORS["token_embd"],
    "model.norm.weight": MODEL_TENSORS["output_norm"],
    "lm_head.weight": MODEL_TENSORS["output"],
}


def model_file(path: Path) -> Path:
    """A model's GGUF file: the path itself, or, of a folder, a file that is there until the process ends."""
    # Path.is_dir raises for a name that is too long, whose refusal is the opener's.
    return _converted(path.resolve()) if os.path.isdir(path) else path


@cache
def _converted(folder: Path) -> Path:
    scratch = scratch_folder("folder")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return gguf_of_folder(folder, scratch / f"{folder.name or 'model'}.gguf")


def gguf_of_folder(folder: Path, out: Path) -> Path:
    """Write the GGUF file of a folder's model.

    Raises:
        ModelFileError: a file of the folder is missing or damaged.
        UnsupportedModelError: another model than a Llama, or a Llama of a kind that is not computed here.
    """
    if not (folder / "config.json").is_file():
        wanted = "a GGUF file, or a folder of Hugging Face's with config.json and *.safetensors"
        raise ModelFileError(str(folder), got="a folder without config.json", wanted=wanted)
    config = checked_config(folder / "config.json")
    _refuse_others(config)
    tensors = dict(named_tensors(folder, config))
    head_dim = _head_dim(config)
    scaling, divisors = scaling_of(config, head_dim)
    keys = _keys(folder, config, tensors, head_dim) | scaling
    plans = [TensorPlan(name, one.shape, _type(one)) for name, (one, _) in tensors.items()]
    plans += [TensorPlan(name, values.shape, GGMLQuantizationType.F32) for name, values in divisors.items()]

    @lru_cache(maxsize=2)
    def whole(name: str) -> NDArray[np.float32]:
        source, heads = tensors[name]
        if heads and (not source.shape or source.shape[0] % (2 * heads)):
            what = f"{source.path}: the rows of {name}"
            raise ModelFileError(what, got=list(source.shape), wanted=f"pairs for {heads} heads")
        return pairs_from_halves(source.float32(), heads) if heads else source.float32()

    def rows(plan: TensorPlan, first: int, n: int) -> NDArray[Any]:
        if plan.name in divisors:
            return encode_rows(plan.name, divisors[plan.name][None], plan.type)
        values = whole(plan.name).reshape(plan.n_rows, -1)
        return encode_rows(plan.name, values[first : first + n], plan.type)

    return write_gguf(out, {key: field(value) for key, value in keys.items()}, plans, rows).path


def pairs_from_halves(w: NDArray[Any], n_heads: int) -> NDArray[Any]:
    """Rows of a projection `[n_heads * head_dim, …]` from Hugging Face's order into GGUF's.

    In each head row i comes to 2i and row i + head_dim / 2 to 2i + 1.
    """
    halves = w.reshape(n_heads, 2, -1, *w.shape[1:])  # [n_heads, 2, head_dim / 2, in]
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(w.shape)


def named_tensors(
    folder: Path, config: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[FolderTensor | StackedTensor, int]]]:
    """Every tensor by its GGUF name, with the heads whose rows have another order there, 0 for none.

    Raises:
        UnsupportedModelError: a tensor that a Llama has no place for.
    """
    tied = bool(config.get("tie_word_embeddings"))
    heads = {"wq": _size(config, "num_attention_heads")}
    heads["wk"] = _size(config, "num_key_value_heads", heads["wq"])
    experts: dict[str, dict[int, FolderTensor]] = {}
    for name, tensor in folder_tensors(folder).items():
        if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
            continue
        whole = name if name.startswith(("model.", "lm_head.")) else f"model.{name}"
        if whole in _MODEL:
            yield _MODEL[whole], (tensor, 0)
            continue
        _, _, inner = whole.partition("model.layers.")
        number, _, rest = inner.partition(".")
        block = whole_number(number)
        if block is not None and (of := _of_experts(rest)) is not None:
            field, expert = of
            experts.setdefault(block_tensor(block, field, experts=True), {})[expert] = tensor
            continue
        part, _, kind = rest.rpartition(".")
        known = _BLOCK.get(part, "")
        own = {"weight": known, "bias": BIAS_OF.get(known, "")}.get(kind, "")
        if block is None or not own:
            raise UnsupportedModelError(f"{tensor.path}: tensor {name!r}", hint="a Llama has no place for it")
        yield block_tensor(block, own), (tensor, heads.get(known, 0))
    for name, parts in experts.items():
        yield name, (_stacked(folder, name, parts, config), 0)


def _of_experts(rest: str) -> tuple[str, int] | None:
    """A mixture's field and the number of the expert; None of what is no tensor of experts."""
    part = rest.removeprefix("block_sparse_moe.").removesuffix(".weight").split(".")
    if part == ["gate"] and rest.startswith("block_sparse_moe."):
        return "w_router", 0
    if len(part) != 3 or part[0] != "experts" or part[2] not in _EXPERT:
        return None
    number = whole_number(part[1])
    return None if number is None else (_EXPERT[part[2]], number)


def _stacked(
    folder: Path, name: str, parts: Mapping[int, FolderTensor], config: Mapping[str, Any]
) -> FolderTensor | StackedTensor:
    """The experts' matrices as one tensor; the router is one already."""
    if name == block_tensor(int(name.split(".")[1]), "w_router", experts=True):
        return parts[0]
    n = _n_experts(config)
    tensors = tuple(parts[expert] for expert in sorted(parts))
    alike = len({(one.shape, one.kind) for one in tensors}) == 1
    if len(parts) != n or max(parts) != n - 1 or not alike:
        got = f"{len(parts)} of {n} experts" if alike else "matrices of several shapes or types"
        raise ModelFileError(f"{folder}: {name}", got=got, wanted="one of each expert, all alike")
    return StackedTensor(tensors)


def _type(tensor: FolderTensor | StackedTensor) -> GGMLQuantizationType:
    return GGMLQuantizationType["F32" if len(tensor.shape) == 1 else tensor.kind]


def _head_dim(config: Mapping[str, Any]) -> int:
    return _size(
        config, "head_dim", max(1, _size(config, "hidden_size") // _size(config, "num_attention_heads"))
    )


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A number of config.json that counts something; `default` where it is absent or null."""
    got = config.get(key)
    if got is None and default is not None:
        return default
    if type(got) is not int or not 0 < got < 1 << 31:
        wanted = "a whole number from 1 on, below 2^31"
        raise ModelFileError(f"config.json: {key}", got=quoted(got), wanted=wanted)
    return got


def _epsilon(config: Mapping[str, Any]) -> float:
    got = config.get("rms_norm_eps", 1e-6)
    if isinstance(got, bool) or not isinstance(got, int | float) or not 0 < got < 1:
        raise ModelFileError("config.json: rms_norm_eps", got=quoted(got), wanted="a number between 0 and 1")
    return float(got)


def _refuse_others(config: Mapping[str, Any]) -> None:
    for key in ("num_attention_heads", "hidden_size", "max_position_embeddings"):
        _size(config, key)
    for key, wanted, default in (
        ("model_type", ("llama", "mistral", "mixtral"), "llama"),
        ("hidden_act", ("silu",), "silu"),
        ("partial_rotary_factor", (1, None), None),
        ("pretraining_tp", (1, None), None),
        ("quantization_config", (None,), None),
    ):
        got = config.get(key, default)
        if isinstance(got, bool | list | dict) or got not in wanted:
            said = got if isinstance(got, str) else quoted(got, 40)
            raise UnsupportedModelError(
                f"config.json: {key}", got=said, wanted=str(wanted[0]) if wanted[0] else "none"
            )


def _experts(config: Mapping[str, Any]) -> dict[str, Any]:
    """How many experts a mixture has, and how many compute a token."""
    n = _n_experts(config)
    if not n:
        return {}
    used = _size(config, "num_experts_per_tok", 2)  # without a number transformers takes 8 and 2
    return {"llama.expert_count": n, "llama.expert_used_count": used}


def _n_experts(config: Mapping[str, Any]) -> int:
    return _size(config, "num_local_experts", 8) if config.get("model_type") == "mixtral" else 0


def _keys(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Any], head_dim: int
) -> dict[str, Any]:
    embedding = tensors.get(MODEL_TENSORS["token_embd"])
    if embedding is None or len(embedding[0].shape) != 2:
        raise ModelFileError(f"{folder}", got="no model.embed_tokens.weight", wanted="a whole model")
    heads, size = _size(config, "num_attention_heads"), embedding[0].shape[0]
    return {
        "general.architecture": "llama",
        "general.name": str(config.get("_name_or_path") or folder.name),
        "llama.context_length": _size(config, "max_position_embeddings"),
        "llama.embedding_length": _size(config, "hidden_size"),
        "llama.block_count": _size(config, "num_hidden_layers"),
        "llama.feed_forward_length": _size(config, "intermediate_size"),
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": _size(config, "num_key_value_heads", heads),
        "llama.attention.key_length": head_dim,
        "llama.attention.value_length": head_dim,
        "llama.attention.layer_norm_rms_epsilon": _epsilon(config),
        "llama.rope.dimension_count": head_dim,
        "llama.rope.freq_base": theta_of(config),
        "llama.vocab_size": size,
        **_experts(config),
        **vocabulary_keys(folder, config, size),
    }
