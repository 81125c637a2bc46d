"""What all encoders share: configuration, registry, segments, keyed randomness, dropout, memory counts."""
