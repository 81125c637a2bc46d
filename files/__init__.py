"""Files: atomic writes, locks, checksums, byte sizes and tensors as safetensors."""
