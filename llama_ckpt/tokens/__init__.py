"""Text to token ids and back, and the drawing of a token from logits."""

__all__: list[str] = []
