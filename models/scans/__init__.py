"""Recurrences of Mamba and Mamba-2."""
