"""Training losses, one file each, and their negatives."""
