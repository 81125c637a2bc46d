"""Evaluate a model on a split."""
