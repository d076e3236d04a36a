"""The ladder: finds the checkpoints, tries each on the recordings, and totals what they say."""

__all__: list[str] = []
