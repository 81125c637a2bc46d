"""The settings of the item table."""

from dataclasses import field
from typing import Literal

from longplay.common.settings import NonNegativeInt, PositiveFloat, settings_class
from longplay.distributed.table.row_optimizers import RowOptimizerConfig


@settings_class
class ItemTableConfig:
    """Initialization, placement and update of the item table.

    Attributes:
        update: row_sparse = the owner of a touched row updates it with the row optimizer; zero_dense =
            DeepSpeed's Adam updates every row at each step.
        placement: Memory of rows and optimizer state. device = the encoder's device; host = page-locked host
            memory, for tables larger than the GPU. Both are the same on a CPU.
        cached_rows: With placement host, rows of the most frequent items that each rank keeps on its GPU,
            with their optimizer state. 0 = none.
        lr_scale: Factor on `train.lr` for the item table.
        init_std: Standard deviation of the initial rows.
    """

    update: Literal["row_sparse", "zero_dense"] = "row_sparse"
    placement: Literal["device", "host"] = "device"
    cached_rows: NonNegativeInt = 0
    optimizer: RowOptimizerConfig = field(default_factory=RowOptimizerConfig)
    lr_scale: PositiveFloat = 1.0
    init_std: PositiveFloat = 0.02

    def __post_init__(self) -> None:
        if self.update == "zero_dense" and self.optimizer.name != "adam":
            raise ValueError(
                f"optimizer.name={self.optimizer.name!r}: needs table.update row_sparse, because "
                "DeepSpeed's Adam updates the table with zero_dense"
            )
        if self.placement == "host" and self.update == "zero_dense":
            raise ValueError(
                "placement='host': needs table.update row_sparse, because zero_dense updates every row at "
                "each step"
            )
        if self.cached_rows and self.placement != "host":
            raise ValueError(
                f"cached_rows={self.cached_rows}: needs table.placement host; with "
                f"{self.placement} all rows are on the device"
            )
