"""Estimate memory, traffic and steps before a run starts."""
