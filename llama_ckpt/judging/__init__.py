"""How right a tensor is: errors, limits and where they come from, the verdict, and who is off."""

__all__: list[str] = []
