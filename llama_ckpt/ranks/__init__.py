"""Runs on several ranks: one dump a rank, put together, judged, and the rank and fault named."""

__all__: list[str] = []
