"""The inputs of a run's encoder besides the items, from its settings and its dataset."""
