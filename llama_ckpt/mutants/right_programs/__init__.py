"""Right programs that round otherwise: none may be condemned, and limits are measured on those of torch.

`catalogue` lists the variants of the oracle and of our layers that every change of a limit is tried on;
`torch_programs` has whole programs in torch with every sum in a given order, which limits are measured on.
"""

from __future__ import annotations

__all__: list[str] = []
