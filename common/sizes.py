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

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", 1):
    _UNITS |= {f"{_letter}b": 1000**_power, f"{_letter}ib": 1024**_power, _letter: 1024**_power}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")


class SizeError(argparse.ArgumentTypeError, ValueError):
    """A string is not a byte size."""


def parse_bytes(text: str) -> int:
    """Parse a size such as 80GiB, 512MiB, 24GB, 4G or 1000000 and return its number of bytes.

    Raises:
        SizeError: `text` is not a positive number with an optional unit.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    unit = _UNITS.get(match[2]) if match else None
    if match is None or unit is None or float(match[1]) <= 0:
        raise SizeError(f"{text!r} is not a size; write it as 80GiB, 512MiB or 24GB")
    return int(float(match[1]) * unit)


def mib(size: float) -> str:
    """Format a number of bytes in MiB, for example "1,024.0 MiB"."""
    return f"{size / 2**20:,.1f} MiB"


def gib(size: float) -> str:
    """Format a number of bytes in GiB, for example "1.00 GiB"."""
    return f"{size / 2**30:,.2f} GiB"


def readable_size(size: float) -> str:
    """Format a number of bytes in GiB from 1 GiB on, and in MiB below."""
    return gib(size) if size >= 2**30 else mib(size)
