"""Programs that run on several ranks, right and wrong, for `compare --rank`."""

__all__: list[str] = []
