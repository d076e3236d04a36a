"""What is attacked: for each kind of input its sound files, how a mutant is made, and how it is read."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import reference_dumps
from tools.fuzz.gguf_fields import changed_gguf, fields_of
from tools.fuzz.mutate import changed_bytes, changed_json, changed_text, json_bytes
from tools.fuzz.requests import change_request, read_request, request_seeds
from tools.fuzz.rules import header_passed
from tools.fuzz.safetensors_fields import changed_safetensors, changed_values

__all__ = ["TARGETS", "Target"]

DUMPS = Path(reference_dumps.__file__).parent
SMALL = DUMPS / "llama-3"
ROOT = DUMPS.parent


@dataclass(frozen=True)
class Target:
    """A kind of input.

    Attributes:
        name: as the table has it. what: one of them, for people.
        seeds: sound ones, as bytes.
        change: a mutant of one.
        read: reads a mutant, given an empty folder of its own that stays from one to the next.
        share: of the time that all targets have.
        seconds: of the processor's time, at most, for one.
        goal: how many `--goals` tries. only_read: only those that could be read count towards it.
    """

    name: str
    what: str
    seeds: Callable[[], Sequence[bytes]]
    change: Callable[[bytes, random.Random], bytes]
    read: Callable[[bytes, Path], object]
    share: float = 1.0
    seconds: float = 5.0
    goal: int = 5_000
    only_read: bool = False


def _ggufs() -> list[bytes]:
    return [(SMALL / "model.gguf").read_bytes(), (DUMPS / "mixture" / "model.gguf").read_bytes()]


def _change_gguf(data: bytes, rng: random.Random) -> bytes:
    try:
        return changed_gguf(fields_of(data), rng)
    except (struct.error, IndexError, KeyError, MemoryError, OverflowError):
        return changed_bytes(data, rng)


def _open_gguf(data: bytes, folder: Path) -> object:
    from llama_ckpt.gguf.file import GGUFFile
    from llama_ckpt.tokens.tokenizer import Tokenizer
    from llama_ckpt.weights.config import LlamaConfig
    from llama_ckpt.weights.llama_tensors import check_llama

    file = GGUFFile(_written(folder / "model.gguf", data))
    config = LlamaConfig.from_gguf(file)
    check_llama(file, config)
    header_passed()
    return Tokenizer.from_gguf(file).encode("And God said 12 \u00e9\u4e16")


def _load_gguf(data: bytes, folder: Path) -> object:
    from llama_ckpt.generation import generate
    from llama_ckpt.gguf.file import GGUFFile
    from llama_ckpt.model import load
    from llama_ckpt.weights.config import LlamaConfig
    from llama_ckpt.weights.llama_tensors import check_llama

    path = _written(folder / "model.gguf", data)
    file = GGUFFile(path)
    check_llama(file, LlamaConfig.from_gguf(file))
    header_passed()
    model = load(path, device="cpu", dtype="float32")
    return [*generate(model, [1, 2], max_tokens=2)]


def _safetensors() -> list[bytes]:
    return [path.read_bytes() for path in sorted((SMALL / "runs").glob("*.safetensors"))]


def _open_dump(data: bytes, folder: Path) -> object:
    from llama_ckpt.dumps.run_table import run_table
    from llama_ckpt.dumps.theirs import open_their_dump

    theirs = open_their_dump(_written(folder / "theirs.safetensors", data))
    table = run_table(theirs)
    return [theirs.raw(name) for name in theirs.names], table and table.histories


def _compare(data: bytes, folder: Path) -> object:
    from llama_ckpt.comparing.compare_dump import compare_dump

    path = _written(folder / "theirs.safetensors", data)
    return compare_dump(path, model=SMALL / "model.gguf", partial=True).to_json()


def _manifests() -> list[bytes]:
    return [(SMALL / "f16" / "manifest.json").read_bytes()]


def _change_json(data: bytes, rng: random.Random) -> bytes:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return changed_bytes(data, rng)
    return json_bytes(changed_json(document, rng, rng.choice((1, 1, 2, 3))), rng)


def _open_manifest(data: bytes, folder: Path) -> object:
    from llama_ckpt.dumps.reference import open_dumps

    tensors = folder / "prompt.safetensors"
    if not tensors.exists():
        tensors.write_bytes((SMALL / "f16" / "prompt.safetensors").read_bytes())
    _written(folder / "manifest.json", data)
    return _all_of(open_dumps(folder))


def _recorded() -> list[bytes]:
    return [(SMALL / "f16" / "prompt.safetensors").read_bytes()]


def _open_recorded(data: bytes, folder: Path) -> object:
    from llama_ckpt.dumps.reference import open_dumps

    _written(folder / "prompt.safetensors", data)
    manifest = json.loads(_manifests()[0])
    manifest["dumps"][0]["sha256"] = hashlib.sha256(data).hexdigest()
    _written(folder / "manifest.json", json.dumps(manifest).encode())
    return _all_of(open_dumps(folder))


def _all_of(dumps: object) -> object:
    from llama_ckpt.dumps.reference import DumpSet

    assert isinstance(dumps, DumpSet)
    for name in dumps.names:
        dump = dumps.dump(name)
        _ = [dump[point] for point in dump]
        for kind in ("sampling", "penalized"):
            for index in range(len(getattr(dump.entry, kind))):
                dump.probabilities(index, penalized=kind == "penalized")
    return dumps


def _maps() -> list[bytes]:
    return [(ROOT / "examples" / "hugging_face.toml").read_bytes()]


def _change_text(data: bytes, rng: random.Random) -> bytes:
    text = data.decode("utf-8", "surrogateescape")
    return changed_text(text, rng).encode("utf-8", "surrogatepass" if rng.random() < 0.9 else "replace")


def _change_text_safely(data: bytes, rng: random.Random) -> bytes:
    try:
        return _change_text(data, rng)
    except UnicodeError:
        return changed_bytes(data, rng)


def _open_map(data: bytes, folder: Path) -> object:
    from llama_ckpt.dumps.names_map import read_map

    names = read_map(_written(folder / "map.toml", data))
    return [
        names.find(one) for one in ("model.layers.3.self_attn.q_proj", "x" * 200, "blk.\u0663.q", "blk.1.q")
    ]


PLAN = b"q: heads\nffn_gate: features\nattn_out: partial sums\nlogits: vocabulary 334 333\nblocks: 0-1, 2-3\n"


def _open_plan(data: bytes, folder: Path) -> object:
    from llama_ckpt.ranks.plan import read_plan

    return read_plan(_written(folder / "plan.txt", data))


ARITHMETIC = {
    "like": "llama.cpp-cpu",
    "weights": {"*": "float16"},
    "product_sums": {"Q4_0": "float16 every 16 in 4 parts"},
    "head": {"keys": "float16"},
    "fewer_rows": {"64": {"queries": "float16", "keys_at_a_time": 1}},
}


def _open_arithmetic(data: bytes, folder: Path) -> object:
    from llama_ckpt.arithmetic.profiles import read_arithmetic

    return read_arithmetic(str(_written(folder / "arithmetic.json", data)))


FOLDER = {
    "config.json": {
        **{"model_type": "llama", "hidden_act": "silu", "hidden_size": 16, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16, "head_dim": 8},
        **{"max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "vocab_size": 5},
        "rope_scaling": {
            **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            "original_max_position_embeddings": 32,
        },
    },
    "tokenizer.json": {
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
        "added_tokens": [{"id": 3, "content": "<s>", "special": True}],
        "pre_tokenizer": {"type": "ByteLevel"},
    },
    "tokenizer_config.json": {"bos_token": "<s>", "add_bos_token": True},
    "model.safetensors": {"model.embed_tokens.weight": [5, 16], "model.norm.weight": [16]},
}


def _folders() -> list[bytes]:
    tensors = FOLDER["model.safetensors"]
    for name, shape in {
        **{"self_attn.q_proj": [16, 16], "self_attn.k_proj": [8, 16], "self_attn.v_proj": [8, 16]},
        **{"self_attn.o_proj": [16, 16], "mlp.gate_proj": [16, 16], "mlp.up_proj": [16, 16]},
        **{"mlp.down_proj": [16, 16], "input_layernorm": [16], "post_attention_layernorm": [16]},
    }.items():
        tensors[f"model.layers.0.{name}.weight"] = shape
    at, header = 0, {}
    for name, shape in tensors.items():
        end = at + 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, end]}
        at = end
    return [json.dumps({**FOLDER, "model.safetensors": header}).encode()]


def _open_folder(data: bytes, folder: Path) -> object:
    from llama_ckpt.hugging_face.folder import gguf_of_folder

    try:
        files = json.loads(data)
    except (ValueError, RecursionError):
        files = {"config.json": None}
    for name, document in FOLDER.items():
        document = files.get(name, document) if isinstance(files, dict) else document
        text = json.dumps(document, ensure_ascii=True).encode()
        if name == "model.safetensors":
            text = struct.pack("<Q", len(text)) + text + b"\0" * 8000
        _written(folder / name, text)
    return gguf_of_folder(folder, folder / "out.gguf")


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


TARGETS: dict[str, Target] = {
    one.name: one
    for one in (
        Target("gguf", "GGUF files opened", _ggufs, _change_gguf, _open_gguf, 3, goal=1_000_000),
        Target("load", "GGUF files loaded", _ggufs, _change_gguf, _load_gguf, 3, goal=100_000),
        Target("dump", "dumps", _safetensors, changed_safetensors, _open_dump, goal=50_000),
        Target(
            *("compare", "dumps compared", _safetensors, changed_values, _compare, 2, 60),
            goal=2_000,
            only_read=True,
        ),
        Target("manifest", "manifests", _manifests, _change_json, _open_manifest, goal=30_000),
        Target("recorded", "reference dumps", _recorded, changed_safetensors, _open_recorded, goal=20_000),
        Target("map", "maps", _maps, _change_text_safely, _open_map, goal=50_000),
        Target("plan", "plans", lambda: [PLAN], _change_text_safely, _open_plan, 0.5),
        Target(
            "arithmetic",
            "arithmetics",
            lambda: [json.dumps(ARITHMETIC).encode()],
            _change_json,
            _open_arithmetic,
            0.5,
        ),
        Target(
            "request", "requests to the worker", request_seeds, change_request, read_request, goal=100_000
        ),
        Target("folder", "folders of Hugging Face's", _folders, _change_json, _open_folder),
    )
}
"""By name."""
