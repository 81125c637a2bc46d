"""Turn events into users' sequences and write them as tar shards."""
