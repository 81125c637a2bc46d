"""Grids of runs: submit them, watch them, and run each as a job."""
