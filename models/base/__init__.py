"""Shared by all encoders: configuration, registry, segments, keyed randomness, dropout, memory formulas."""
