"""World, ZeRO-sharded item table, encoder engine, checkpoints and exact ranking over the sharded table."""
