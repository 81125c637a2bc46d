"""Run configuration, recipes and shared command arguments."""
