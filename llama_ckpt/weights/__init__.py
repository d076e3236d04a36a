"""A Llama's weights: configuration, tensors, block formats, products with them; and the KV cache."""

__all__: list[str] = []
