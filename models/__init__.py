"""Encoders, mixers with their reference twins, losses, negatives and metrics.

Import from the modules themselves, for example `from longplay.models.build import build_encoder`.
"""
