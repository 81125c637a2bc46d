"""Read and write a run's folder."""
