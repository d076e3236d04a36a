"""What people copy into their own programs, and `llama-ckpt example` prints. Imports nothing of ours."""

__all__: list[str] = []
