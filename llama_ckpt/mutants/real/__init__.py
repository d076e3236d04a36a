"""Faults that people reported in public, rebuilt on one plain port: what is caught, where, what is said."""

__all__: list[str] = []
