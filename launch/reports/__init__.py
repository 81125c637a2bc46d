"""Build tables and figures from runs."""
