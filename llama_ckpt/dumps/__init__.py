"""Dumps: llama.cpp's with their manifest, other people's by their own names, a live module's recorder."""

__all__: list[str] = []
