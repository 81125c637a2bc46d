"""Training losses and their negatives."""
