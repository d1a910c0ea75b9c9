"""Rows that are made, not read."""

import random


def sums(count: int = 100, largest: int = 9, seed: int = 0) -> list[dict[str, str]]:
    """Return `count` questions such as "3+4" with their answers, the same for the same seed.

    Args:
        count: How many rows.
        largest: The largest number to add.
        seed: Of the numbers.
    """
    draw = random.Random(seed)
    pairs = ((draw.randint(0, largest), draw.randint(0, largest)) for _ in range(count))
    return [{"question": f"{a}+{b}", "answer": str(a + b)} for a, b in pairs]
