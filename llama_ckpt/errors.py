"""Every error that a user of llama_ckpt can cause, in one tree.

    LlamaCkptError                 base of all; the command line prints it and exits with 2
    ├── ModelFileError             the GGUF file is damaged, truncated, or not a Llama
    ├── UnsupportedModelError      a sound file that uses something we do not compute
    ├── TokenizerError             a token id or a text that the vocabulary cannot hold
    ├── ShapeError                 a tensor of the wrong shape or dtype
    ├── ContextLengthError         more tokens than the context or the cache holds
    ├── DeviceError                a device that is not there, or too small
    ├── OptionError                an option out of its range, an unknown checkpoint
    ├── NotFiniteError             logits that are NaN or infinite: no token can be chosen
    ├── MissingPartError           a part that a light install leaves out: torch, the worker
    ├── DumpError                  a reference dump that is damaged, incomplete, or of other weights
    └── ReferenceError             the reference program
        ├── ReferenceMissingError      llama-cpp-python is not installed
        └── ReferenceCrashedError      llama.cpp ended in its own process before it was done

Every message is one sentence: what, got, wanted, what to do. It is one line of fewer than 500 printable
characters, whatever the file says that it speaks of.
"""

from __future__ import annotations

from llama_ckpt.plain_text import shortened

__all__ = [
    "ContextLengthError",
    "DeviceError",
    "DumpError",
    "LlamaCkptError",
    "MissingPartError",
    "ModelFileError",
    "NotFiniteError",
    "OptionError",
    "ReferenceCrashedError",
    "ReferenceError",
    "ReferenceMissingError",
    "ShapeError",
    "TokenizerError",
    "UnsupportedModelError",
]


MOST = 499
"""Characters of a message, at most."""

_ROOM = (180, 100, 110, 75)
"""Characters that what, got, wanted and the hint have of a message that is too long as it stands."""


def _sentence(what: str | None, got: str | None, wanted: str | None, hint: str | None) -> str:
    facts = [f"got {got}"] if got is not None else []
    facts += [f"wanted {wanted}"] if wanted is not None else []
    sentence = (what or "") + (": " + ", ".join(facts) if facts else "")
    return sentence + (f"; {hint}" if hint else "")


def _text(part: object) -> str:
    try:
        return f"{part}"
    except ValueError:  # Python writes no integer of thousands of digits
        return "a number of too many digits"


class LlamaCkptError(Exception):
    """Base of every error that a user can cause.

    Args:
        what: the thing that is wrong: a field, an argument, a file.
        got: what was found there; left out of the message when None.
        wanted: what would have been right; left out when None.
        hint: what to do about it; left out when None.
    """

    def __init__(
        self,
        what: str,
        *,
        got: object = None,
        wanted: object = None,
        hint: str | None = None,
    ) -> None:
        self.what, self.got, self.wanted, self.hint = what, got, wanted, hint
        parts = [None if part is None else _text(part) for part in (what, got, wanted, hint)]
        sentence = _sentence(*parts)
        if len(sentence) > MOST or not sentence.isprintable():
            room = _ROOM if len(sentence) > MOST else (MOST,) * 4
            parts = [
                None if part is None else shortened(part, most)
                for part, most in zip(parts, room, strict=True)
            ]
            sentence = shortened(_sentence(*parts), MOST)
        super().__init__(sentence)


class ModelFileError(LlamaCkptError):
    """The GGUF file is damaged, truncated, of another format, or not a Llama."""


class UnsupportedModelError(LlamaCkptError):
    """The file is sound, but uses something that no checkpoint here computes."""


class TokenizerError(LlamaCkptError):
    """A token id outside the vocabulary, or a text that it cannot hold."""


class ShapeError(LlamaCkptError):
    """A tensor has the wrong shape or dtype for the function it was given to."""


class ContextLengthError(LlamaCkptError):
    """More tokens than the model's context or the KV cache holds."""


class DeviceError(LlamaCkptError):
    """The device that was asked for is not there, or too small."""


class OptionError(LlamaCkptError):
    """An option is out of its range, or names something that does not exist."""


class NotFiniteError(LlamaCkptError):
    """Logits are NaN or infinite, so that no token can be chosen."""


class MissingPartError(LlamaCkptError):
    """A part of the package is needed that is not installed: an extra of pyproject.toml."""


class DumpError(LlamaCkptError):
    """A reference dump is damaged, incomplete, or belongs to other weights or tokens."""


class ReferenceError(LlamaCkptError):  # noqa: A001 - the field's word; Python's own is about weakrefs
    """The reference program could not be used."""


class ReferenceMissingError(ReferenceError):
    """llama-cpp-python, the optional extra `reference`, is not installed."""


class ReferenceCrashedError(ReferenceError):
    """llama.cpp ended, in its own process, before it had delivered its tensors."""
