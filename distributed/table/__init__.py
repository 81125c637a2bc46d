"""The sharded item table: lookup, update, softmax and ranking."""
