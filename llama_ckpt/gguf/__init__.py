"""GGUF files: bytes in, checked and named tensors out, and back. It knows nothing of Llamas."""

__all__: list[str] = []
