"""What every folder shares: registries, atomic writes, locks, checksums, byte sizes, tensor files."""
