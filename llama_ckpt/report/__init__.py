"""What a person reads: verdicts for the terminal, and the pages of checkpoints."""

__all__: list[str] = []
