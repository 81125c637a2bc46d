"""Grids of runs: submit them, follow them, and run each as a job."""
