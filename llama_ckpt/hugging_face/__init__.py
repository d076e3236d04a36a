"""Folders of Hugging Face's: safetensors with a `config.json`, read as the GGUF file of the same model."""

__all__: list[str] = []
