"""Programs that are known: for each a module with its mapping, whose file's name is the program's.

A new one needs a file here and nothing else; it is recognized by the paths of its submodules.
"""

__all__: list[str] = []
