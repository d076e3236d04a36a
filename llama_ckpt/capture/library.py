"""llama.cpp as a shared library, through the low-level API of llama-cpp-python.

Only the recorder's own process loads it: a crash in there ends that process and nothing else.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from functools import cache
from typing import Any

__all__ = ["Library", "load_library"]

WARNING_LEVEL, CONTINUED = 3, 5  # GGML_LOG_LEVEL_WARN (ERROR is 4), and the rest of a line
GPU_DEVICE = 1  # GGML_BACKEND_DEVICE_TYPE_GPU


@cache
def load_library() -> Library:
    """Load llama.cpp, once: its log callback has to live as long as the process."""
    return Library()


class Library:
    """llama.cpp's functions (`api`), those of ggml that the package does not declare, its log.

    Made by `load_library`.

    Attributes:
        api: the module `llama_cpp.llama_cpp`: llama.cpp's C functions under their own names.
        ggml: ggml's C functions; the loader finds them through libllama's dependencies.
        complaints: warnings and errors that llama.cpp logged.
    """

    def __init__(self) -> None:
        self.api: Any = importlib.import_module("llama_cpp.llama_cpp")
        self.package_version: str = importlib.import_module("llama_cpp").__version__
        self.ggml: Any = self.api._lib
        self.complaints: list[str] = []
        self._level = 0
        for name in ("ggml_version", "ggml_op_name", "ggml_type_name", "ggml_backend_dev_name"):
            getattr(self.ggml, name).restype = ctypes.c_char_p
        self.ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
        # ctypes frees a callback that nobody holds, and llama.cpp's next log line would crash.
        self._log_callback = self.api.llama_log_callback(self._log)
        self.api.llama_log_set(self._log_callback, None)
        self.api.llama_backend_init()

    def version(self) -> str:
        """llama.cpp's version and ggml's. The commit is that of whatever checkout it was built in."""
        llama_cpp = self.api.llama_version().decode()
        return f"llama.cpp {llama_cpp}, ggml {self.ggml.ggml_version().decode()}"

    def system_info(self) -> str:
        """The instruction sets that llama.cpp was built for and found."""
        info: bytes = self.api.llama_print_system_info()
        return info.decode().strip(" |")

    def gpu_name(self) -> str | None:
        """The kind of the first GPU that this build of llama.cpp can use, `"cuda"`, or None."""
        device = self.ggml.ggml_backend_dev_by_type(GPU_DEVICE)
        if device is None:
            return None
        name: bytes = self.ggml.ggml_backend_dev_name(ctypes.c_void_p(device))
        return name.decode().rstrip("0123456789").lower()

    def op_name(self, op: int) -> str:
        """Name of a ggml op; its number changes from version to version, its name does not."""
        name: bytes = self.ggml.ggml_op_name(op)
        return name.decode()

    def type_name(self, kind: int) -> str:
        """Name of a ggml element type, `"f32"`."""
        name: bytes = self.ggml.ggml_type_name(kind)
        return name.decode()

    def _log(self, level: int, text: bytes, _: object) -> None:
        self._level = self._level if level == CONTINUED else level
        if self._level >= WARNING_LEVEL:
            line = text.decode(errors="replace")
            self.complaints.append(line.strip())
            # The parent shows the end of this where the process dies.
            print(line, end="", file=sys.stderr, flush=True)
