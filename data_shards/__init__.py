"""From raw events to a packed, resumable stream of user sequences.

`readers` turn source files into blocks of events, `preparation` turns blocks into shards, `storage` opens and
verifies them, `stream` packs them into rows. `generators` write raw files for tests at scale.
"""
