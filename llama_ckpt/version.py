"""The version of this package; it stands alone so that naming it costs nothing."""

__all__ = ["__version__"]

__version__ = "0.1.0"
