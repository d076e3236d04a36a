"""The whole model fast on a GPU: packed weights, fused kernels, a step that is captured once and replayed."""

__all__: list[str] = []
