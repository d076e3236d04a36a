"""Models that we make: seeded from a shape, derived in another type, quantized, exported."""

__all__: list[str] = []
