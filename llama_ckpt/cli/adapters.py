"""Options that need no adapter get none: typer would build one with pydantic for each, asked for or not.

Loading pydantic and building them takes a tenth of a second, a third of what `inspect` takes in all. What was
not given stays None, a text is a text and a path is made of one; anything else is typer's, as is everything
where typer keeps its adapters in another place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.core import TyperCommand

__all__ = ["Command", "SparedAdapters"]

_PLACE = "_runtime_param"


class _Spared:
    """Stands where typer keeps a parameter's adapter, until there is something to adapt."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value of an option as typer asks for it."""
        if not param.multiple and param.nargs != -1:
            if value is None:
                return None
            kind = param.type_descriptor.annotation
            if isinstance(value, str) and kind in (str, Path):
                return kind(value)
        setattr(param, _PLACE, None)
        return param.get_runtime_param().coerce(value, param=param, ctx=ctx)


class SparedAdapters:
    """Beside a class of typer's commands: what its parameters have in the place of adapters."""

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters of the command, the help's among them."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, _PLACE, param) is None:
                setattr(param, _PLACE, _Spared())
        return params


class Command(SparedAdapters, TyperCommand):
    """One command."""
