"""The blocks that encoders are stacked from."""
