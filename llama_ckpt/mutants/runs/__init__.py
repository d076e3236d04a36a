"""Faults that one prompt in one call on one rank does not show: of caches, sequences, tiles and ranks."""

__all__: list[str] = []
