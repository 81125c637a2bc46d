"""Encoders, sequence mixers and scans, losses and metrics.

Import from the modules, for example `from longplay.models.encoder import build_encoder`.
"""
