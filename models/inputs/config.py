"""The settings of the input stage. Importing this module does not import torch."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from longplay.common.settings import settings_class

GapName = Literal["none", "bucket", "fourier"]


def _gap_name(value: Any) -> Any:
    """Read true as `bucket`, and false and none as `none`."""
    if value is None or isinstance(value, bool):
        return "bucket" if value else "none"
    return value


def _names(value: Any) -> Any:
    """Read none as no names."""
    return () if value is None else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


@settings_class
class InputConfig:
    """Inputs of the encoder in addition to the item and the position of an event.

    Attributes:
        features: Event features of the dataset to embed, separated by commas.
        time_gap: Time since the user's previous event. bucket = an embedding for each power of two; fourier =
            sines and cosines of the logarithm, projected; true means bucket.
        time_of_day: Embed the hour and the weekday of the event, in UTC.
        item_categories: Text or integer columns of items.parquet to embed, separated by commas.
        item_vectors: Column of items.parquet with one vector per item, which is projected. The vectors are
            not trained.
    """

    features: Names = ()
    time_gap: Annotated[GapName, BeforeValidator(_gap_name)] = "none"
    time_of_day: bool = False
    item_categories: Names = ()
    item_vectors: str | None = None

    def __post_init__(self) -> None:
        for setting in ("features", "item_categories"):
            names = getattr(self, setting)
            if len(set(names)) < len(names):
                raise ValueError(f"{setting}={','.join(names)}: a name occurs twice")
