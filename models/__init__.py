"""Encoders with their registry, mixers with reference implementations, losses, negatives and metrics.

Import from the modules themselves, for example `from longplay.models.encoder import build_encoder`.
"""
