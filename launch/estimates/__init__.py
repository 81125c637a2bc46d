"""Estimates of a run's memory, traffic and steps before it starts."""
