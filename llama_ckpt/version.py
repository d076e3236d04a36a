"""The version of this package; it stands alone so that naming it costs nothing."""

__version__ = "0.1.0"
