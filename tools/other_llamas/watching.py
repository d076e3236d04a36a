"""Watching calls of classes that are not torch's: each is shown with its instance, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

__all__ = ["Look", "watched"]

Look: TypeAlias = Callable[[Any, tuple[Any, ...], Any], None]
"""Gets the instance that was called, its positional arguments, and what it returned."""


@contextmanager
def watched(kinds: Iterable[type], look: Look, method: str = "__call__") -> Iterator[None]:
    """While it lasts, every call of these classes' method is shown to `look`, once it is done."""
    before = {kind: getattr(kind, method) for kind in set(kinds)}
    inherited = {kind for kind in before if method not in kind.__dict__}

    def watching(own: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **options: Any) -> Any:
            returned = own(self, *args, **options)
            look(self, args, returned)
            return returned

        return call

    try:
        for kind, own in before.items():
            setattr(kind, method, watching(own))
        yield
    finally:
        for kind, own in before.items():
            delattr(kind, method) if kind in inherited else setattr(kind, method, own)
