"""Models that anyone can make: any shape, weights from a seed, the same bytes on every machine.

    make_seeded("f16.gguf", shape="llama-2-7b", seed=1, type="F16")
    make_seeded("small.gguf", width=256, n_heads=8, n_kv_heads=2, ffn=512, n_layers=4, seed=3)

The vocabulary is the embedded model's or another file's, its first entries, or none. F32 files hold weights
to their last bit, F16 and BF16 files hold them rounded, and every type in blocks is quantized from the F16
values, as people do it; so a Q8_0 file has the weights that `derive` makes of the F16 file. Where the SHA-256
of a file is known, it is checked before the file appears.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Unpack

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.gguf_writer import GGUFValue
from numpy.typing import NDArray

from llama_ckpt.capture.launch import require_reference
from llama_ckpt.errors import OptionError
from llama_ckpt.gguf.file import MetadataValue
from llama_ckpt.gguf.writing import Progress, TensorPlan, encode_rows, field, write_gguf
from llama_ckpt.making.derive import TYPES, direct_type, file_type_fields, stays_float32
from llama_ckpt.making.reference_quantizer import quantize_with_llama_cpp
from llama_ckpt.making.seeded_shapes import SHAPES, SeededShape, Sizes, resolve_shape
from llama_ckpt.making.seeded_vocabulary import vocabulary_keys
from llama_ckpt.making.seeded_weights import SeededWeights
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.tensor_names import expected_shapes
from llama_ckpt.whole_files import WrittenFile, folder_beside
from reference_dumps import embedded_model

__all__ = ["KNOWN_SHA256", "SHAPES", "TYPES", "SeededModel", "SeededShape", "make_seeded"]

KNOWN_SHA256: Final[Mapping[tuple[str, int, str], str]] = MappingProxyType(
    {
        ("llama-2-7b", 1, "F16"): "d627304c91c5d8525ed1b2489c0c9e63746921f81b2b9898eb79c8a9b03ac4cf",
        ("llama-2-7b", 1, "Q8_0"): "bcd9383d3b905db483f36cd0e169dde7ad2b007f6e8ff3a3c02cb4b7e33b70a1",
        ("llama-2-7b", 1, "Q4_0"): "7b0dcd5aa0b506aeb545b76802263c3ca85ff03c21355ae9061338689fa3f1ac",
        ("tiny-32l", 1, "F16"): "a12575d968a25ae9ed42ace1e6b29af2689a07fd121d3a18079e68d79771ae57",
        ("gqa-256", 1, "F32"): "8b01c20b9aa93d141008867f492c2115ce699d42b23aafbf6798f2cba2db800f",
        ("gqa-256", 1, "F16"): "e0855e85ae5a5d943c6bcbc8aa2e745740f9a81c4aa0ea8b443e03d1b16bad10",
        ("gqa-256", 1, "BF16"): "2015f46fd76190a5c1060111950eea467720c648450ae5dc93c2d5cdebbe4f19",
        ("gqa-256", 1, "Q8_0"): "a26e3303a3c8b83e515761b45772dd1fd256130b8eb4ef700cbf4d362636f9fd",
        ("gqa-256", 1, "Q5_1"): "e32aeae22d24f4584b00d27734981d1f4f1bf277fbfe70d6e6f176b1e042a931",
        ("gqa-256", 1, "Q5_0"): "32dd8793a09c70e91dbca0653f440a44cb1a8afca7d7196782698e8ef52157c1",
        ("gqa-256", 1, "Q4_1"): "35befa323613d8c7ee0958f0fbbc2880961dc6ef533aea782148f99d9294941c",
        ("gqa-256", 1, "Q4_0"): "743f180fca6a8bceb5dd0896382d2a1d1277783b6db6527676d93451a8eb2d04",
        ("head-128", 1, "F16"): "1b92872e90c8e27dd705e7b62b292b4a35a8775e4d5356f68955f41952122767",
        ("tied-256", 1, "F16"): "63eff6c0fc056040df64423067403419cda3cf2b2255381483eb958e8dc11c96",
        ("llama3-256", 1, "F16"): "b6ee8f55591dd30ecfc659b12539233e0cb0d04d512908f7b18674c7bf1ea039",
        ("mixture-256", 1, "F16"): "e4496e5155f966970196f4f46a19c04fd18800ffd951b46a8d351dc5a681a4c5",
        ("bare-256", 1, "F16"): "375bc0fa32073075ee0d432c60e8b8d23af9d74658e7dfe833250b1185d2108b",
    }
)
"""SHA-256 of whole files by (shape, seed, type), with the embedded model's vocabulary. None of them
depends on the machine: a file that comes out with another one is refused."""

_FLOATS: Final = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)


@dataclass(frozen=True)
class SeededModel(WrittenFile):
    """A seeded model's file.

    Attributes:
        checked: True when the SHA-256 is the one in `KNOWN_SHA256`; False when none is known.
    """

    checked: bool


def make_seeded(
    out: str | os.PathLike[str],
    *,
    shape: str | SeededShape | None = None,
    seed: int = 1,
    type: str = "F16",
    vocabulary: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    **sizes: Unpack[Sizes],
) -> SeededModel:
    """Make a Llama of any shape with weights from a seed.

    Args:
        out: the file to write; it appears when it is whole.
        shape: a name in `SHAPES`, or a shape; None needs at least width, n_heads, ffn and n_layers.
        seed: from 0; another seed, other weights.
        type: one of `TYPES`, in any case; those that `gguf` can't write go through llama.cpp's
            quantizer, by way of an F16 file beside `out`.
        vocabulary: a GGUF file with another vocabulary; None takes the embedded model's, and "none" makes a
            model of token ids alone.
        threads: None takes the machine's cores.
        progress: called as `progress(bytes written, bytes in all)`; not by llama.cpp's quantizer.
        sizes: fields of `SeededShape`, instead of the shape's own.

    Raises:
        OptionError: sizes that do not go together, rows that do not divide into the type's blocks,
            an unknown shape or type, a key that cannot be left out, a file that cannot be written.
        ModelFileError, UnsupportedModelError: the vocabulary's file is damaged or has no Llama
            vocabulary; or the SHA-256 of the seeded file is not the known one.
        ReferenceMissingError: a type for llama.cpp's quantizer, and llama-cpp-python is missing.
        ReferenceCrashedError: llama.cpp's quantizer failed.
    """
    resolved = resolve_shape(shape, sizes)
    if seed < 0:
        raise OptionError("seed", got=seed, wanted="an integer from 0")
    kind = direct_type(type)
    _check_rows(resolved, type, kind)
    named = next((name for name, known in SHAPES.items() if known == resolved), None)
    name = f"seeded {named or f'width {resolved.width}'}, seed {seed}"
    plan = _ModelPlan(resolved, name, seed, Path(vocabulary or embedded_model()))
    if kind is None:
        written, known = _through_llama_cpp(plan, type, Path(out), threads, progress), None
    else:
        known = KNOWN_SHA256.get((named or "", seed, kind.name)) if vocabulary is None else None
        written = plan.write(Path(out), kind, threads, progress, known)
    return SeededModel(written.path, written.sha256, written.nbytes, known is not None)


def _check_rows(shape: SeededShape, type: str, kind: GGMLQuantizationType | None) -> None:
    """llama.cpp's quantizer would take another type for rows that do not divide; a maker can choose."""
    if kind is None:
        block = 32 if type.upper() == "IQ4_NL" else 256
    else:
        block = GGML_QUANT_SIZES[kind][0]
    config = shape.config()
    for name, row in (("width", config.width), ("n_heads * head_dim", config.q_width), ("ffn", config.ffn)):
        if row % block:
            wanted = f"a multiple of {block}, the block of {type.upper()}"
            raise OptionError(name, got=row, wanted=wanted, hint="choose another type or another shape")


@dataclass(frozen=True)
class _ModelPlan:
    """All of a seeded model but its type and its place."""

    shape: SeededShape
    name: str
    seed: int
    vocabulary: Path

    def write(
        self,
        out: Path,
        kind: GGMLQuantizationType,
        threads: int | None,
        progress: Progress | None,
        sha256: str | None = None,
    ) -> WrittenFile:
        config = self.shape.config(self.name)
        metadata = self._metadata(config, kind)
        weights = SeededWeights(config, self.seed)
        float32 = GGMLQuantizationType.F32
        plans = [
            TensorPlan(name, shape, float32 if stays_float32(name, shape) else kind)
            for name, shape in expected_shapes(config).items()
        ]

        def rows(plan: TensorPlan, first: int, n: int) -> NDArray[Any]:
            values = weights.rows(plan.name, first, n)
            if plan.type not in _FLOATS:
                values = values.astype(np.float16).astype(np.float32)
            return encode_rows(plan.name, values, plan.type)

        return write_gguf(out, metadata, plans, rows, threads=threads, progress=progress, sha256=sha256)

    def _metadata(self, config: LlamaConfig, kind: GGMLQuantizationType) -> dict[str, GGUFValue]:
        defaults, values = _model_keys(config)
        vocabulary, vocabulary_defaults = vocabulary_keys(self.vocabulary, config.vocab_size)
        values, defaults = values | vocabulary, defaults | vocabulary_defaults
        metadata = {key: field(value) for key, value in values.items()}
        metadata |= file_type_fields(kind)
        for key in self.shape.omit_keys:
            _check_omitted(key, defaults, values)
            del metadata[key]
        return metadata


def _model_keys(config: LlamaConfig) -> tuple[dict[str, MetadataValue], dict[str, MetadataValue]]:
    """llama.cpp's defaults for the keys that may be left out, and the values of all keys."""
    values: dict[str, MetadataValue] = {
        "general.architecture": "llama",
        "general.name": config.name,
        "llama.context_length": config.context_length,
        "llama.embedding_length": config.width,
        "llama.block_count": config.n_layers,
        "llama.feed_forward_length": config.ffn,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_theta,
        "llama.vocab_size": config.vocab_size,
    }
    if config.n_experts:
        values["llama.expert_count"] = config.n_experts
        values["llama.expert_used_count"] = config.n_experts_used
    if config.rope_scale != 1.0:
        values |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": config.rope_scale}
    defaults: dict[str, MetadataValue] = {
        "general.name": config.name,
        "llama.attention.head_count_kv": config.n_heads,
        "llama.attention.key_length": config.width / config.n_heads,
        "llama.attention.value_length": config.width / config.n_heads,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": config.vocab_size,
    }
    return defaults, values


def _check_omitted(
    key: str, defaults: Mapping[str, MetadataValue], values: Mapping[str, MetadataValue]
) -> None:
    if key not in defaults:
        raise OptionError("a key to leave out", got=key, wanted="one of " + ", ".join(defaults))
    if values[key] != defaults[key]:
        raise OptionError(
            f"leaving out {key}", got=f"a model with {values[key]}", wanted=f"the default, {defaults[key]}"
        )


def _through_llama_cpp(
    plan: _ModelPlan, type: str, out: Path, threads: int | None, progress: Progress | None
) -> WrittenFile:
    require_reference()
    with folder_beside(out) as folder:
        source = plan.write(folder / "f16.gguf", GGMLQuantizationType.F16, threads, progress)
        return quantize_with_llama_cpp(source.path, type, out, threads=threads)
