"""The training loop and the optimizer step."""
