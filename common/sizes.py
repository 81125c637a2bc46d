"""Parse and format byte sizes.

| unit | bytes |
|---|---|
| none, B | 1 |
| KB, MB, GB, TB | powers of 1000 |
| KiB, MiB, GiB, TiB and K, M, G, T | powers of 1024 (as in Slurm) |

Units are case-insensitive.
"""

import argparse
import re

from longplay.common.printable import short_repr

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", 1):
    _UNITS |= {f"{_letter}b": 1000**_power, f"{_letter}ib": 1024**_power, _letter: 1024**_power}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")


class SizeError(argparse.ArgumentTypeError, ValueError):
    """A string is not a byte size."""


def parse_bytes(text: str) -> int:
    """Parse a size such as 80GiB, 512MiB, 24GB, 4G or 1000000 and return its number of bytes.

    Raises:
        SizeError: `text` is not a number with an optional unit, or is not between 1 byte and 2**63 bytes.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    unit = _UNITS.get(match[2]) if match else None
    size = float(match[1]) * unit if match is not None and unit is not None else 0.0
    if not 1 <= size < 2**63:
        raise SizeError(f"{short_repr(text)} is not a size; write it as 80GiB, 512MiB or 24GB")
    return int(size)


def mib(size: float) -> str:
    """Format a number of bytes in MiB, for example "1,024.0 MiB"."""
    return f"{size / 2**20:,.1f} MiB"


def gib(size: float) -> str:
    """Format a number of bytes in GiB, for example "1.00 GiB"."""
    return f"{size / 2**30:,.2f} GiB"


def readable_size(size: float) -> str:
    """Format a number of bytes in GiB from 1 GiB on, and in MiB below."""
    return gib(size) if size >= 2**30 else mib(size)
