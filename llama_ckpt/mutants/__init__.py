"""The catalogues themselves on trial: every named bug must be caught, no right program may be."""

__all__: list[str] = []
