"""The catalogue of bugs in programs that round on purpose, each held to what its program declares."""

__all__: list[str] = []
