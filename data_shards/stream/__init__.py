"""Pack sequences into rows and deliver them in a reproducible order."""
