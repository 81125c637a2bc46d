"""Save and load checkpoints."""
