"""Everything that touches DeepSpeed; no other folder imports it."""
