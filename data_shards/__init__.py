"""Events -> user sequences -> tar shards, and the packed, resumable stream of them.

Writing: `text_reader`, `parquet_reader`, `synthetic` -> `sequences` -> `shard_writer`, led by `prepare`.
Reading: `dataset` (`shard_reader`, `vocabulary`) -> `splits` -> `packing`, `epoch_plan` -> `train_stream`,
`eval_stream`. Nothing here imports the project's other packages.
"""
