"""Read the files of an export: the item table, the encoder and the items."""

from pathlib import Path
from textwrap import shorten
from typing import cast

import numpy as np
import polars as pl
import torch
from torch import Tensor

from longplay.common.tensor_file import TensorFile, TensorFileError, read_tensors
from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.id_column import IdColumn
from longplay.data_shards.storage.item_columns import ItemColumns
from longplay.data_shards.storage.parquet_tables import read_table
from longplay.data_shards.storage.vocabulary import ItemVocabulary
from longplay.models.encoder import SequenceEncoder, build_encoder
from longplay.models.encoder_size import EncoderTooLargeError, is_small, num_parameters
from longplay.serving.export_format import TABLE_TENSOR, ExportConfig, ExportError


def map_table(path: Path, num_rows: int, width: int) -> Tensor:
    """Memory-map an item table's file and return it as (num_rows, width) fp32; pages are read on access.

    Raises:
        ExportError: the file is damaged, or holds another tensor.
    """
    try:
        with TensorFile(path) as file:
            table = file.map(TABLE_TENSOR) if TABLE_TENSOR in file.names() else None
    except TensorFileError as error:
        raise ExportError(f"{error}; export the run again") from None
    if table is None or table.dtype != torch.float32 or table.shape != (num_rows, width):
        raise ExportError(f"{path}: is not an fp32 table of {num_rows} x {width}; export the run again")
    return table


def read_encoder(file: Path, config: ExportConfig) -> SequenceEncoder:
    """Return the encoder with its weights, in eval mode.

    Raises:
        ExportError: the file is damaged, or does not fit `config`.
    """
    try:
        if not is_small(config.encoder, config.inputs):  # building it could exhaust the memory
            with TensorFile(file) as tensors:
                saved, expected = tensors.num_elements(), num_parameters(config.encoder, config.inputs)
            if saved != expected:
                raise TensorFileError(f"it has {saved:,} weights, but the settings give {expected:,}")
        encoder = build_encoder(config.encoder, inputs=config.inputs)
        encoder.load_state_dict(read_tensors(file))
    except (RuntimeError, TensorFileError, EncoderTooLargeError) as error:
        cause = shorten(str(error), 300, placeholder=" ...")  # PyTorch lists every missing weight
        raise ExportError(f"{file}: does not fit config.json ({cause}); export the run again") from None
    return encoder.requires_grad_(False).eval()


def read_items(file: Path, num_items: int) -> ItemVocabulary:
    """Return the original ids, counts and columns of the items.

    Raises:
        ExportError: the file is damaged, or has another number of items.
    """
    try:
        table = read_table(file, ["original_id", "count"])
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ExportError(
            f"{file}: cannot be read ({str(error).splitlines()[0]}); export the run again"
        ) from None
    if len(table) != num_items:
        raise ExportError(f"{file}: has {len(table)} items instead of {num_items}; export the run again")
    try:
        return ItemVocabulary(
            IdColumn(table["original_id"]),
            cast(np.ndarray, table["count"].to_numpy()),
            ItemColumns(lambda: file, file),
        )
    except DataError as error:
        raise ExportError(f"{file}: {error}; export the run again") from None
