"""Tables, progress, signals and exit codes for the commands."""
