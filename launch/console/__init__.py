"""Tables, progress and signals of the commands."""
