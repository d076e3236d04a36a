"""Kernels compile for Hopper where there is no GPU: what Triton's interpreter lets pass is found here too."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kernels.interpreter import needs_triton

pytestmark = needs_triton

POINTERS = {
    "query_ptr": "fp32", "part_ptr": "fp32", "stats_ptr": "fp32", "context_ptr": "fp32", "slots_ptr": "i32",
    "counter_ptr": "i32", "positions_ptr": "i32", "xg_ptr": "fp32", "ss_ptr": "fp32", "turns_ptr": "fp32",
    "key_ptr": "fp16", "value_ptr": "fp16", **{f"{a}{b}_ptr": "u32" for a in "qsf" for b in ("", "2")},
}  # fmt: skip


def compiled(kernel: Any, numbers: dict[str, str], constants: dict[str, Any], warps: int) -> Any:
    """A kernel as for an H100, on pointers as POINTERS has them."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: f"*{POINTERS[name]}" for name in kernel.arg_names if name in POINTERS}
    signature |= numbers | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})


@pytest.mark.parametrize("group", [3, 4])
def test_attention_of_heads_that_share_keys(group: int) -> None:
    from llama_ckpt.kernels.grouped_attention import grouped_attention_kernel

    sizes = {"GROUP": group, "G2": 4, "M": 16, "HEAD": 128, "HEAD2": 128, "CHUNK": 128, "PARTS": 32}
    made = compiled(grouped_attention_kernel, {"capacity": "i32", "scale": "fp32"}, {**sizes, "PDL": True}, 4)
    assert "mma.sync" in made.asm["ptx"]  # scores and contexts on the tensor cores


def test_queries_keys_and_values_of_two_types() -> None:
    from llama_ckpt.kernels.fused import mixed_qkv_kernel
    from llama_ckpt.kernels.planes import Mode, Pack

    first = {"PACK": int(Pack.NIBBLE), "MODE": int(Mode.K_PAIR), "OFFSET": 0, "R": 16, "PASSES": 2}
    second = {"PACK2": int(Pack.SIX), "MODE2": int(Mode.K_TWO), "OFFSET2": 32, "R2": 8, "PASSES2": 1}
    rest = {"STEPS": 1, "AHEAD": 1, "STEPS2": 1, "AHEAD2": 1, "NT": 128, "U": 128, "HEAD": 128}
    rest |= {"PARTS": 256, "PARTS2": 256, "FINE": False, "ASM": 2, "PDL": True}
    numbers = dict.fromkeys(("n_rows", "n_rows2", "q_width", "kv_width", "capacity"), "i32") | {"eps": "fp32"}
    made = compiled(mixed_qkv_kernel, numbers, {**first, **second, **rest}, 4)
    assert made.asm["ptx"].count("griddepcontrol.wait") == 2  # one in each half, behind its first weights
