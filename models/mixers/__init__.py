"""Sequence mixers: attention, Mamba, Mamba-2."""
