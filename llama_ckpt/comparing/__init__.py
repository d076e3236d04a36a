"""Somebody's whole dump, walked point by point from the tokens to the logits."""

__all__: list[str] = []
