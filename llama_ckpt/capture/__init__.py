"""Recording the real llama.cpp into reference dumps.

`capture(...)` runs a model in llama.cpp, in a process of its own, and writes what its
evaluation callback sees: every point of the network, the greedy choices and continuation, and
the probabilities after the sampler chain.
"""

from __future__ import annotations

from llama_ckpt.capture.launch import INSTALL_LINE, require_reference
from llama_ckpt.capture.record import Take, capture, capture_takes

__all__ = ["INSTALL_LINE", "Take", "capture", "capture_takes", "require_reference"]
