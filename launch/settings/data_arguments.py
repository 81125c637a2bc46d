"""Arguments of the commands that read a prepared dataset."""

import argparse

from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.locations import Location, parse_location


def data_location(text: str) -> Location:
    """Return the folder or URL that `text` gives, as the type of an argument."""
    try:
        return parse_location(text)
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
