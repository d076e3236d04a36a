"""Which tensors a Llama needs: every one of its configuration, of the right shape, of a type read here."""

from __future__ import annotations

from typing import Final

from gguf import GGMLQuantizationType

from llama_ckpt.errors import ModelFileError, UnsupportedModelError
from llama_ckpt.gguf.cursor import shown
from llama_ckpt.gguf.file import GGUFFile
from llama_ckpt.weights.config import LlamaConfig
from llama_ckpt.weights.tensor_names import expected_shapes, unsupported_reason

__all__ = ["SUPPORTED_TYPES", "check_llama"]

_T = GGMLQuantizationType
SUPPORTED_TYPES: Final = frozenset(
    {_T.F32, _T.F16, _T.BF16, _T.Q4_0, _T.Q4_1, _T.Q5_0, _T.Q5_1, _T.Q8_0}
    | {_T.Q2_K, _T.Q3_K, _T.Q4_K, _T.Q5_K, _T.Q6_K, _T.IQ4_NL, _T.IQ4_XS}
    | {_T.IQ1_S, _T.IQ1_M, _T.IQ2_XXS, _T.IQ2_XS, _T.IQ2_S, _T.IQ3_XXS, _T.IQ3_S}
    | {_T.TQ1_0, _T.TQ2_0, _T.MXFP4, _T.NVFP4}
)
"""The tensor types that a Llama's weights may have here."""


def check_llama(file: GGUFFile, config: LlamaConfig) -> None:
    """Hold the file's tensors against the configuration: none missing, none left over, every shape.

    Raises:
        ModelFileError: a tensor is missing or has another shape than the metadata ask for.
        UnsupportedModelError: a tensor that this Llama has no place for, or of an unsupported type.
    """
    wanted = expected_shapes(config)
    for name in file.tensors:
        if name not in wanted:
            raise UnsupportedModelError(
                f"{file.path}: tensor {shown(name)} is not used by a Llama here",
                hint=unsupported_reason(name, config.n_layers),
            )
    for name, shape in wanted.items():
        info = file.info(name)
        if info.shape != shape:
            raise ModelFileError(
                f"{file.path}: the shape of tensor {name}",
                got=list(info.shape),
                wanted=f"{list(shape)}, as the file's metadata ask for",
            )
        if info.type not in SUPPORTED_TYPES:
            raise UnsupportedModelError(
                f"{file.path}: the type of tensor {name}",
                got=info.type.name,
                wanted="one of " + ", ".join(sorted(kind.name for kind in SUPPORTED_TYPES)),
            )
