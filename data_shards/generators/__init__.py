"""Generate events and raw files."""
