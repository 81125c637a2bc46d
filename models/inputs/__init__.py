"""What an encoder sees of an event in addition to its item."""
