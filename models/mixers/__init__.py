"""Sequence mixers: attention, Mamba and Mamba-2."""
