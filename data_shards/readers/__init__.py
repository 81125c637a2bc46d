"""Read source files into blocks of events."""
