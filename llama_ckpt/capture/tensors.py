"""Reading ggml's tensors by their C structure, from any backend's memory.

The structure is ggml's `struct ggml_tensor`. llama-cpp-python does not declare it, and it has
changed before; so the first tensor that is read is compared with what ggml's own functions say
of it, and a difference is an error instead of a wrong recording.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llama_ckpt.capture.library import Library
from llama_ckpt.errors import ReferenceError

__all__ = ["GGMLTensor", "TensorReader"]

MAX_DIMS, MAX_OP_PARAMS, MAX_SRC, MAX_NAME = 4, 64, 10, 64


class GGMLTensor(ctypes.Structure):
    """`struct ggml_tensor`: `ne` counts elements and `nb` bytes per step, innermost axis first."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * MAX_DIMS),
        ("nb", ctypes.c_size_t * MAX_DIMS),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * (MAX_OP_PARAMS // 4)),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * MAX_SRC),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * MAX_NAME),
        ("extra", ctypes.c_void_p),
    )


class TensorReader:
    """Names and values of the tensors that the evaluation callback is given pointers to."""

    def __init__(self, library: Library) -> None:
        self._library = library
        ggml = library.ggml
        ggml.ggml_get_name.restype = ctypes.c_char_p
        ggml.ggml_nbytes.restype = ctypes.c_size_t
        ggml.ggml_backend_tensor_get.restype = None
        self._op_name = lru_cache(library.op_name)
        self._layout_checked = False

    def key(self, pointer: int) -> tuple[str, str]:
        """A tensor's name and the name of the op that makes it."""
        tensor = GGMLTensor.from_address(pointer)
        if not self._layout_checked:
            self._check_layout(tensor, pointer)
        return tensor.name.decode(errors="replace"), self._op_name(tensor.op)

    def values(self, pointer: int) -> NDArray[np.float32]:
        """A copy of a tensor's values, four axes, outermost first: float32, or int32 made float32."""
        tensor = GGMLTensor.from_address(pointer)
        kind = self._library.type_name(tensor.type)
        if kind not in ("f32", "i32"):
            name = tensor.name.decode(errors="replace")
            raise ReferenceError(f"llama.cpp's tensor {name}: type", got=kind, wanted="f32 or i32")
        n_bytes = self._library.ggml.ggml_nbytes(ctypes.c_void_p(pointer))
        data = np.empty(n_bytes, np.uint8)
        # Copies from a GPU's memory too; the tensor's own pointer may not be ours to follow.
        target, size = ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(n_bytes)
        ggml = self._library.ggml
        ggml.ggml_backend_tensor_get(ctypes.c_void_p(pointer), target, ctypes.c_size_t(0), size)
        held = np.float32 if kind == "f32" else np.int32
        strided = np.ndarray(tuple(tensor.ne)[::-1], held, data, strides=tuple(tensor.nb)[::-1])
        return strided.astype(np.float32)

    def _check_layout(self, tensor: GGMLTensor, pointer: int) -> None:
        ggml = self._library.ggml
        name = ggml.ggml_get_name(ctypes.c_void_p(pointer))
        n_bytes = ggml.ggml_nbytes(ctypes.c_void_p(pointer))
        last = sum((n - 1) * step for n, step in zip(tensor.ne, tensor.nb, strict=True))
        if name != tensor.name or n_bytes != last + 4:
            raise ReferenceError(
                "this llama.cpp lays out its tensors in another way",
                got=f"{tensor.name!r} of {last + 4} bytes",
                wanted=f"{name!r} of {n_bytes} bytes",
                hint="install llama-cpp-python==0.3.36",
            )
        self._layout_checked = True
