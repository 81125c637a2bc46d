"""The sharded item table: lookup, update, ranking, softmax."""
