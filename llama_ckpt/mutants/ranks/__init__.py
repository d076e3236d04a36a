"""Programs that run on several ranks, right and wrong, for `compare --rank`."""
