"""What a person reads: verdicts, tables and the pages of checkpoints, rendered for a terminal."""
