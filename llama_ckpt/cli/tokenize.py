"""`llama-ckpt tokenize`: text to token ids and back, as JSON, without torch."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from llama_ckpt.cli.options import ModelFile, model_path
from llama_ckpt.errors import TokenizerError
from llama_ckpt.gguf.file import open_gguf
from llama_ckpt.tokens.tokenizer import Tokenizer

__all__ = ["EXAMPLE", "NAME", "command"]

NAME = "tokenize"
EXAMPLE = 'Example: llama-ckpt tokenize "Hello" prints [1, 15043]'


def command(
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Texts; standard input without any.")
    ] = None,
    model: ModelFile = None,
    bos: Annotated[
        bool | None,
        typer.Option("--add-bos/--no-bos", help="Whether BOS comes first; as the file says without it."),
    ] = None,
    special: Annotated[
        bool, typer.Option("--parse-special", help="Read <s>, </s>, … as special tokens, not as text.")
    ] = False,
    pieces: Annotated[bool, typer.Option("--pieces", help="Print [id, piece] pairs instead of ids.")] = False,
    decode: Annotated[
        bool, typer.Option("--decode", help="The other way: each text is a JSON list of ids.")
    ] = False,
) -> None:
    """Print the token ids of texts as JSON.

    One list for each text, or for each line of standard input as soon as it is there.
    """
    tokenizer = Tokenizer.from_gguf(open_gguf(model_path(model)))
    for text in _texts(texts):
        if decode:
            answer: object = tokenizer.decode(_ids(text))
        else:
            ids = tokenizer.encode(text, add_bos=bos, parse_special=special)
            answer = [[i, _shown(tokenizer.piece(i))] for i in ids] if pieces else ids
        # One line of output for each line of input, at once: a program may be waiting for it.
        print(json.dumps(answer, ensure_ascii=False), flush=True)


def _texts(arguments: list[str] | None) -> Iterator[bytes]:
    """The arguments' own bytes, valid UTF-8 or not, or the lines of standard input."""
    if arguments:
        yield from (os.fsencode(text) for text in arguments)
    else:
        yield from (line.removesuffix(b"\n") for line in sys.stdin.buffer)


def _ids(text: bytes) -> list[int]:
    wanted = "a JSON list of whole numbers, such as [1, 15043]"
    try:
        ids = json.loads(text)
    except ValueError as error:  # not JSON, or not even UTF-8
        raise TokenizerError("token ids", got=_shown(text), wanted=wanted) from error
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise TokenizerError("token ids", got=_shown(text), wanted=wanted)
    return ids


def _shown(piece: bytes) -> str:
    return piece.decode(errors="replace")
