"""Sequence mixers: attention, Mamba and Mamba-2, each with the activations that it keeps."""
