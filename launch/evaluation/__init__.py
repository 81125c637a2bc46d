"""Evaluate the checkpoints of a run and recommend from them."""
