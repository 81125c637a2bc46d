"""Submit and follow many runs."""
