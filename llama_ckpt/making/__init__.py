"""Models that we make: seeded from a shape, derived in another type, quantized, exported."""
