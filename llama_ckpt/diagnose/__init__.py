"""Diagnosis: whose the error is, where it is made, and which bug it looks like."""

__all__: list[str] = []
