"""Shared parts of every encoder: configuration, registry, segments, keyed randomness."""
