"""Best-fit decreasing against a plain implementation of the same rule."""

import random
from collections import Counter

import pytest
import torch
from torchtune.data import best_fit
from torchtune.data.packing import Packing


def plain_best_fit(lengths, budget):
    """How full the bins get, in the most obvious way."""
    bins = []
    for length in sorted(lengths, reverse=True):
        fitting = [b for b in bins if sum(b) + length <= budget]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            bins.append([length])
    return Counter(map(sum, bins))


@pytest.mark.parametrize("seed", range(8))
def test_bins_are_those_of_the_plain_rule(seed):
    draw = random.Random(seed)
    budget = draw.choice([10, 64, 100])
    lengths = [draw.randint(1, budget) for _ in range(300)]
    sizes = sorted(Counter(lengths), reverse=True)
    numbers = best_fit(sizes, [Counter(lengths)[size] for size in sizes], budget)
    bins = {}
    for number, length in zip(numbers, sorted(lengths, reverse=True), strict=True):
        bins.setdefault(number, []).append(length)
    assert Counter(map(sum, bins.values())) == plain_best_fit(lengths, budget)
    assert sorted(bins) == list(range(len(bins)))


def test_documents_of_equal_length_change_places_with_the_order():
    lengths = torch.tensor([6, 4, 6, 4, 2])
    packing = Packing(lengths, budget=10)
    straight, offsets = packing.fill(torch.arange(5))
    turned, same = packing.fill(torch.tensor([4, 3, 2, 1, 0]))
    assert offsets.tolist() == same.tolist() == [0, 2, 4, 5]
    assert straight.tolist() == [0, 1, 2, 3, 4]
    assert turned.tolist() == [2, 3, 0, 1, 4]


def test_nothing_exceeds_the_budget_and_little_is_left_over():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, 513, (20_000,), generator=generator)
    order, offsets = Packing(lengths, budget=4096).fill(torch.arange(20_000))
    used = torch.stack([part.sum() for part in lengths[order].split(offsets.diff().tolist())])
    assert order.sort().values.tolist() == list(range(20_000))
    assert int(used.max()) <= 4096
    assert float(lengths.sum()) / (len(used) * 4096) > 0.995
