"""Byte sizes as text.

| unit | bytes |
|---|---|
| none, B | 1 |
| KB, MB, GB, TB | powers of 1000 |
| KiB, MiB, GiB, TiB and K, M, G, T | powers of 1024 (Slurm reads K, M, G and T in the same way) |

Case does not matter.
"""

import argparse
import re

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", 1):
    _UNITS |= {f"{_letter}b": 1000**_power, f"{_letter}ib": 1024**_power, _letter: 1024**_power}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")


class SizeError(argparse.ArgumentTypeError, ValueError):
    """A text is not a byte size."""


def parse_bytes(text: str) -> int:
    """Return the bytes that a text such as 80GiB, 512MiB, 24GB, 4G or 1000000 stands for.

    Raises:
        SizeError: it is not a positive size with one of the units above.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    unit = _UNITS.get(match[2]) if match else None
    if match is None or unit is None or float(match[1]) <= 0:
        raise SizeError(f"{text!r} is not a size; write it as 80GiB, 512MiB or 24GB")
    return int(float(match[1]) * unit)


def mib(size: float) -> str:
    """Return a number of bytes as text in MiB: 1,024.0 MiB."""
    return f"{size / 2**20:,.1f} MiB"


def gib(size: float) -> str:
    """Return a number of bytes as text in GiB: 1.00 GiB."""
    return f"{size / 2**30:,.2f} GiB"
