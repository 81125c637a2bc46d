"""The order of items in the table: a fixed bijection that spreads frequent items over all ranks.

Item 1 is the most frequent item. In item order, the first rank would own every popular row and do nearly all
the work. Instead, positions are multiples of a step, modulo the number of items, as in Fibonacci hashing: the
step is coprime to the number of items and near its golden section, which spreads every range of items evenly.
This takes a few integer operations, stores no permutation, and does not depend on the number of ranks.
"""

import math

from torch import Tensor


class RowOrder:
    """Bijection between items 1..num_items and row positions 0..num_items-1.

    Raises:
        ValueError: num_items is not between 1 and 2**31; products must fit in int64.
    """

    def __init__(self, num_items: int) -> None:
        if not 1 <= num_items <= 2**31:
            raise ValueError(f"num_items: {num_items} is not between 1 and {2**31}")
        step = max(1, round(num_items * (math.sqrt(5) - 1) / 2))
        while math.gcd(step, num_items) != 1:
            step += 1
        self.num_items = num_items
        self.step = step
        self.inverse_step = pow(step, -1, num_items) if num_items > 1 else 0

    def positions(self, items: Tensor) -> Tensor:
        """Return the row positions of `items`, each in 1..num_items; same shape, int64."""
        return (items - 1) * self.step % self.num_items

    def items(self, positions: Tensor) -> Tensor:
        """Return the items at row positions, each in 0..num_items - 1; same shape, int64."""
        return positions * self.inverse_step % self.num_items + 1
