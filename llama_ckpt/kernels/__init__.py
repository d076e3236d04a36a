"""Products with packed weights on a GPU: weights repacked at load, kernels that read them once.

`planes` brings a weight of any file type into a layout that a warp reads in 16-byte pieces; it is
plain torch and runs anywhere. `launching` says which rows and threads a program takes. The other
modules hold Triton kernels; they can be imported without Triton, and used with it on CUDA, or under
its interpreter (`TRITON_INTERPRET=1`) on the CPU.
"""

from __future__ import annotations

__all__: list[str] = []
