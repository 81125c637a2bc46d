"""Deliver packed rows in a reproducible order."""
