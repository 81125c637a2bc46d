"""Inputs of an encoder in addition to the item of each event."""
