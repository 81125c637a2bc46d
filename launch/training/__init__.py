"""The training of one run: set-up, the loop and the optimizer step."""
