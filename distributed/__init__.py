"""Ranks, the encoder under ZeRO, the sharded item table, exact ranking over it, and checkpoints."""
