"""Turn raw events into shards, and stream the shards as packed rows, resumable at any step.

`readers` turn source files into blocks of events, `preparation` turns blocks into shards, `storage` opens and
verifies them, `stream` packs them into rows. `generators` make synthetic events and raw files, and `audit`
measures how far results on a dataset can be trusted.
"""
