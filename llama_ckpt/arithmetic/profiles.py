"""The arithmetic of programs that there are, by name. No number here was fitted: each was read in a source.

A profile says what its program rounds on purpose. What float32 leaves beside is in the limits of every
program alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from llama_ckpt.arithmetic.products import HALF_PRODUCTS, HALF_SCALES, TENSOR_CORES
from llama_ckpt.arithmetic.record import Arithmetic, with_lines
from llama_ckpt.arithmetic.turns import FAST_TURNS
from llama_ckpt.errors import OptionError
from llama_ckpt.outside import json_value, quoted, read_json

__all__ = ["PROFILES", "arithmetic_named", "arithmetic_of", "read_arithmetic"]

_PLAIN: Final[Mapping[str, str]] = dict.fromkeys(("F32", "F16", "BF16"), "float32")
"""Types of plain numbers, with which rows are multiplied as they are."""

_K_TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
_CODEBOOKS = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS")


def _by_type(plain: Mapping[str, str], q8_0: str, q8_1: str, q8_k: str) -> dict[str, str]:
    """ggml's table: which of three block formats a row is rounded to for a weight of each type."""
    return {
        **plain,
        **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "MXFP4", "NVFP4"), q8_0),
        **dict.fromkeys(("Q4_1", "Q5_1"), q8_1),
        **dict.fromkeys((*_K_TYPES, *_CODEBOOKS, "TQ1_0", "TQ2_0"), q8_k),
    }


def _in(dtype: str, name: str, about: str, source: str) -> Arithmetic:
    """Everything kept in a half precision, each step computed in float32 and rounded once."""
    return Arithmetic(
        name=name,
        about=about,
        source=source,
        weights={"*": dtype},
        norm_weights=dtype,
        activations={"*": dtype},
        products=dtype,
        stream_products=dtype,
        embeddings=dtype,
        norm_scaled=dtype,
        norms=dtype,
        angles="float32",
        turns=dtype,
        rotation=dtype,
        turned=dtype,
        keys=dtype,
        values=dtype,
        queries=dtype,
        scores=dtype,
        scaled=dtype,
        probabilities=dtype,
        mixing=dtype,
        context=dtype,
        silu=dtype,
        gated=dtype,
        residual=dtype,
    )


_TRANSFORMERS = "transformers/models/llama/modeling_llama.py"

_KEYS_OF_SDPA = 512
"""How many keys torch's fused attention takes at a time on a CPU."""


def _with_sdpa(eager: Arithmetic) -> Arithmetic:
    """The same with torch's fused attention: scores in float32, exp(score - largest) rounded to be mixed."""
    inside: dict[str, Any] = dict.fromkeys(("scores", "scaled", "probabilities"), "float32")
    return replace(
        eager,
        name=f"{eager.name}-sdpa",
        about=f"{eager.about.partition(',')[0]}, with torch's fused attention on a CPU, its default",
        source=f"{_TRANSFORMERS}; aten/src/ATen/native/cpu/FlashAttentionKernel.cpp (cpu_flash_attention)",
        **inside,
        keys_at_a_time=_KEYS_OF_SDPA,
    )


_BFLOAT16 = _in("bfloat16", "bfloat16-torch", "transformers in bfloat16, its attention eager", _TRANSFORMERS)
_FLOAT16 = _in("float16", "float16-torch", "transformers in float16, its attention eager", _TRANSFORMERS)

_LLAMA_CPP_CPU = Arithmetic(
    name="llama.cpp-cpu",
    about="llama.cpp on an x86 CPU with AVX2 as `capture` runs it: its cache in float32, no flash attention",
    source=(
        "ggml/src/ggml-cpu/ggml-cpu.c (type_traits_cpu: what a row becomes), arch/x86/quants.c "
        "(quantize_row_q8_0, _q8_1), ggml-quants.c (quantize_row_q8_K_ref), ops.cpp (ggml_rope_cache_init)"
    ),
    activations=_by_type({"F32": "float32", "F16": "float16", "BF16": "bfloat16"}, "q8_0", "q8_1", "q8_K"),
    angles="float32-steps",
)

_ATTENTION = ("queries", "keys", "mixing", "values")
_CUT = dict.fromkeys(_ATTENTION, "tf32-cut")
_MMQ_WEIGHTS = {"F32": "tf32", **dict.fromkeys(("Q2_K", "Q4_K", "Q5_K"), HALF_SCALES)}
_MMQ = {
    **{
        "F32": "tf32",
        "F16": "float16",
        "BF16": "bfloat16",
        "*": "q8-mmq",
        "Q4_0": "q8-mmq-half",
        "Q2_K": "q8_1-mmq-64",
    },
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), "q8_1-mmq"),
}
_MMVQ = {
    **{"F32": "float32", "F16": "float16", "BF16": "bfloat16", "*": "q8_0-plain"},
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1"), "q8_1-cuda"),
}


def _few_rows(plain: str, attention: Mapping[str, str], **lines: Any) -> dict[str, Any]:
    """llama.cpp's CUDA kernels for up to 8 rows, and what becomes of a float32 there."""
    return {
        "weights": {"F32": plain, "Q4_1": HALF_PRODUCTS, "Q5_1": HALF_PRODUCTS},
        "activations": _MMVQ | {"F32": plain},
        "product_sums": {"*": "float32"},
        **attention,
        **lines,
    }


_LLAMA_CPP_CUDA = Arithmetic(
    name="llama.cpp-cuda",
    about="llama.cpp's CUDA program on Hopper (Ampere and newer take the same ways), cache in float32",
    source=(
        "ggml/src/ggml-cuda: ggml-cuda.cu (ggml_cuda_mul_mat and its cuBLAS calls), mmvf.cu and mmf.cu "
        "(plain weights, few rows), quantize.cu, vecdotq.cuh, mmq.cuh (quantized ones), rope.cu"
    ),
    weights=_MMQ_WEIGHTS,
    activations=_MMQ,
    product_sums={"F16": "float16 every 16", "BF16": TENSOR_CORES},
    angles="float32-powers",
    turns=FAST_TURNS,
    queries="tf32",
    keys="tf32",
    mixing="tf32",
    values="tf32",
    fewer_rows={
        2: _few_rows(
            "float32",
            dict.fromkeys(_ATTENTION, "float32"),
            activations=_MMVQ | {"BF16": "float32"},
            product_sums={"F16": "float16 in 512 strands"},
        ),
        4: _few_rows("float32", dict.fromkeys(_ATTENTION, "float32")),
        9: _few_rows("tf32-cut", _CUT),
        17: {
            "weights": _MMQ_WEIGHTS | {"F32": "tf32-cut"},
            "activations": _MMQ | {"F32": "tf32-cut"},
            "product_sums": {"*": "float32"},
            **_CUT,
        },
    },
)

_FAST = Arithmetic(
    name="fast",
    about="the engine here, precision fast: a prompt in float16, a few tokens in 16-bit integers",
    source="llama_ckpt/engine/prefill.py, prompt_attention.py; up to 16 rows: kernels/integer_vector.py",
    weights={"*": "float16"},
    activations={"*": "float16"},
    products="float16",
    turned="float16",
    keys="float16",
    values="float16",
    mixing="float16",
    keys_at_a_time=64,
    context="float16",
    gated="float16",
    head={"products": "float32"},
    fewer_rows={
        17: {
            **dict.fromkeys(("products", "turned", "mixing", "context", "gated"), "float32"),
            "weights": {"*": "float32"},
            "activations": {**_PLAIN, "*": "int16 per 32"},
            "keys_at_a_time": 0,
        }
    },
)

_HIGH = Arithmetic(
    name="high",
    about="the engine, precision high, on a file in float16: a prompt in pairs of it, few tokens in float32",
    source="llama_ckpt/engine/products.py, prompt_attention.py; up to 16 rows: kernels/integer_vector.py",
    activations={"*": "float16+float16"},
    turned="float16+float16",
    keys="float16+float16",
    values="float16+float16",
    mixing="float16+float16",
    keys_at_a_time=64,
    fewer_rows={
        17: {
            **dict.fromkeys(("turned", "keys", "values", "mixing"), "float32"),
            "activations": {"*": "float32"},
            "keys_at_a_time": 0,
        }
    },
)

_HIGH_PACKED = replace(
    _HIGH,
    name="high-packed",
    about="the same on any other file: what float16 leaves of a prompt in 8 bits, few tokens in 23 bits",
    source="llama_ckpt/engine/products.py (Dense, _missing), prefill.py (_rows); as high",
    weights={"*": "float16+fp8_e4m3 per tensor"},
    activations={"*": "float16+fp8_e4m3"},
    stream_activations={"*": "float16+fp8_e5m2"},
    context="float16+fp8_e5m2",
    gated="float16+fp8_e5m2",
    fewer_rows={
        17: {
            **_HIGH.fewer_rows[17],
            **dict.fromkeys(("context", "gated"), "float32"),
            "weights": {"*": "float32"},
            "activations": {**_PLAIN, "*": "int23 per 32"},
            "stream_activations": {},
        }
    },
)

_ALL = (
    Arithmetic(about="every step in float32 or better", source="the checkpoints of this package"),
    Arithmetic(
        name="tf32",
        about="products in TF32 or, where cuBLAS chooses so, in float32, as torch takes them on a GPU once "
        "allow_tf32 is set; sums in float32",
        source="torch.backends.cuda.matmul.allow_tf32; which way ties go, and that products of few rows or "
        "short sums are in float32, was seen on an H200",
        or_float32=True,
        weights={"*": "tf32"},
        activations={"*": "tf32"},
        angles="float32",
        keys="tf32",
        values="tf32",
        queries="tf32",
        mixing="tf32",
    ),
    _BFLOAT16,
    _FLOAT16,
    _with_sdpa(_BFLOAT16),
    _with_sdpa(_FLOAT16),
    _LLAMA_CPP_CPU,
    _LLAMA_CPP_CUDA,
    replace(
        _LLAMA_CPP_CPU,
        name="llama.cpp-cpu-f16-cache",
        about="the same with its cache in float16, flash attention off",
        source="as llama.cpp-cpu; ggml-cpu.c: queries and probabilities are rows before a float16 matrix",
        queries="float16",
        mixing="float16",
        keys="float16",
        values="float16",
    ),
    replace(
        _LLAMA_CPP_CPU,
        name="llama.cpp-cpu-flash",
        about="the same as llama.cpp sets itself up: its cache in float16, flash attention on",
        source="as llama.cpp-cpu; ops.cpp (ggml_compute_forward_flash_attn_ext_f16, _tiled from 64 rows on)",
        fewer_rows={64: {"queries": "float16", "keys_at_a_time": 1, "mixed_sums": "float16"}},
        keys="float16",
        values="float16",
    ),
    Arithmetic(
        name="w8a8-per-token",
        about="weights in int8 with a scale for each row, activations in int8 with one for each token",
        source="torch._int_mm and what is built on it; scales are the largest number of a row / 127",
        weights={"*": "int8 per row"},
        activations={"*": "int8 per row"},
        angles="float32",
    ),
    Arithmetic(
        name="fp8-per-tensor",
        about="weights and activations in fp8 E4M3, each tensor with one scale; sums in float32",
        source="torch._scaled_mm; scales are the largest number of a tensor / 448",
        weights={"*": "fp8_e4m3 per tensor"},
        activations={"*": "fp8_e4m3 per tensor"},
        angles="float32",
    ),
    *(
        Arithmetic(
            name=f"fp8-per-tensor-hopper{'-fast' if fast else ''}",
            about="the same in the tensor cores of an H100 or H200, which keep 14 bits of a sum"
            + (", with use_fast_accum" if fast else ""),
            source="torch._scaled_mm on an H200; arithmetic/tensor_cores.py says how its sums were found out",
            weights={"*": "fp8_e4m3 per tensor"},
            activations={"*": "fp8_e4m3 per tensor"},
            product_sums={"*": f"fp8 tensor cores{fast}"},
            angles="float32",
        )
        for fast in ("", ", fast")
    ),
    Arithmetic(
        name="candle-quantized",
        about="candle's quantized Llama on a CPU",
        source="candle-core/src/quantized/k_quants.rs (from_float of BlockQ8_0, BlockQ8_1, BlockQ8K), "
        "candle-transformers/src/models/quantized_llama.rs",
        activations=_by_type(
            {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}, "q8_0-plain", "q8_1-candle", "q8_K-128"
        ),
        angles="float32",
    ),
    _FAST,
    _HIGH,
    _HIGH_PACKED,
    Arithmetic(
        name="run.c",
        about="llama2.c's run.c, float32 throughout",
        source="llama2.c: run.c (forward)",
        angles="float32",
    ),
    Arithmetic(
        name="runq.c",
        about="llama2.c's runq.c: weights and activations in int8, 64 numbers to a scale",
        source="llama2.c: runq.c (quantize, matmul)",
        weights={"*": "int8 per 64"},
        activations={"*": "int8 per 64"},
        angles="float32",
    ),
)

PROFILES: Final[Mapping[str, Arithmetic]] = MappingProxyType({one.name: one for one in _ALL})
"""Every profile by its name."""


def arithmetic_named(name: str) -> Arithmetic:
    """A profile.

    Raises:
        OptionError: there is none of that name.
    """
    if name in PROFILES:
        return PROFILES[name]
    near = get_close_matches(name, PROFILES, 2)
    hint = f"the nearest are {' and '.join(near)}" if near else "or a JSON file"
    raise OptionError("arithmetic", got=quoted(name), wanted="one of " + ", ".join(PROFILES), hint=hint)


def arithmetic_of(declared: object) -> Arithmetic:
    """The arithmetic that somebody declares: a profile's name, or lines as JSON has them.

    Raises:
        OptionError: neither, or a line that is wrong.
    """
    if isinstance(declared, Arithmetic):
        return declared
    if isinstance(declared, str):
        return arithmetic_named(declared)
    if not isinstance(declared, Mapping):
        raise OptionError(
            "an arithmetic", got=quoted(declared), wanted="a profile's name, or an object of lines"
        )
    lines: dict[str, Any] = dict(declared)
    like = lines.pop("like", "float32")
    if not isinstance(like, str | Arithmetic):  # lines within lines within lines would have no end
        raise OptionError("like of an arithmetic", got=quoted(like), wanted="a profile's name")
    base = arithmetic_of(like)
    named = {"name": f"like {base.name}", "about": f"{base.name} with other lines, as declared", "source": ""}
    return with_lines(base, named | lines)


def read_arithmetic(name_or_file: str) -> Arithmetic:
    """A profile by its name, or lines as JSON: in a file, or themselves.

    Raises:
        OptionError: no profile and no file is called so, or the file is not such JSON.
    """
    given = name_or_file.lstrip().startswith("{")
    path = Path("--arithmetic" if given else name_or_file)
    if not given and (name_or_file in PROFILES or not (path.suffix == ".json" or path.is_file())):
        return arithmetic_named(name_or_file)
    wanted = 'such as {"like": "llama.cpp-cpu"}'
    if given:
        return arithmetic_of(json_value(name_or_file, str(path), OptionError, wanted))
    return arithmetic_of(read_json(path, OptionError, wanted))
