"""The same mathematics in numpy float64, written for clarity alone; it shares no code with the layers."""

__all__: list[str] = []
