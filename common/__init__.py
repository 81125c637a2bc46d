"""Utilities shared by all packages: registries, atomic writes, locks, checksums, byte sizes, tensor files."""
