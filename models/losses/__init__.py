"""Training losses, one module each, and the sampling of negatives."""
