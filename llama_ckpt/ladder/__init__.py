"""The ladder: finds the checkpoints, tries each on the recordings, and totals what they say."""
