"""Identification: which operator was applied where another one is wanted, measured from what came out."""

__all__: list[str] = []
