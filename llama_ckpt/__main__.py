"""`python -m llama_ckpt …` is the command `llama-ckpt …`."""

from llama_ckpt.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
