"""What a program rounds, said in a small language, and an oracle that rounds just there."""

__all__: list[str] = []
