"""Which rows make up a step: in any world, after a resume, at the end of an epoch."""

import random
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import pytest
from torchtune.data import Documents, Steps, validation_batches
from torchtune.errors import DataError


def documents(count=53, longest=20):
    draw = random.Random(0)
    lengths = [draw.randint(2, longest) for _ in range(count)]
    return Documents.of([(list(range(n)), [True] * n) for n in lengths])


def world(size, **options):
    """The steps of every rank of a world."""
    settings = {"batch_size": 2, "max_seq_len": 20, "seed": 7, **options}
    return [Steps(documents(), rank=rank, size=size, **settings) for rank in range(size)]


def rows_of_steps(size, epochs=2, **options):
    """Per step, the rows of all ranks together, sorted."""
    steps = []
    for epoch in range(epochs):
        for lists in zip(*(rank.epoch(epoch) for rank in world(size, **options)), strict=True):
            assert len({len(batches) for batches in lists}) == 1  # all ranks do as many
            steps.append(sorted(row for batches in lists for b in batches for row in b.rows))
    return steps


@pytest.mark.parametrize("packed", [False, True])
def test_the_rows_of_a_step_do_not_depend_on_the_world(packed):
    alone = rows_of_steps(1, packed=packed, gradient_accumulation_steps=4)
    pair = rows_of_steps(2, packed=packed, gradient_accumulation_steps=2)
    four = rows_of_steps(4, packed=packed, gradient_accumulation_steps=1)
    assert alone == pair == four


@pytest.mark.parametrize("packed", [False, True])
def test_an_epoch_has_every_row_once_and_the_next_another_order(packed):
    steps = rows_of_steps(2, packed=packed)
    half = len(steps) // 2
    for epoch in (steps[:half], steps[half:]):
        assert Counter(row for step in epoch for row in step) == Counter(
            f"memory:{line}" for line in range(1, 54)
        )
    assert steps[:half] != steps[half:]


def test_the_last_step_is_short():
    steps = rows_of_steps(1, epochs=1, gradient_accumulation_steps=5)
    assert [len(step) for step in steps] == [10, 10, 10, 10, 10, 3]
    (alone,) = world(1, gradient_accumulation_steps=5)
    assert [len(batches) for batches in alone.epoch(0)] == [5, 5, 5, 5, 5, 2]  # none is empty


def test_packed_micro_batches_come_in_another_order_each_epoch():
    (steps,) = world(1, packed=True)
    sizes = [[sum(batches[0].lengths) for batches in steps.epoch(number)] for number in range(3)]
    assert sorted(sizes[0]) == sorted(sizes[1]) == sorted(sizes[2])
    assert sizes[0] != sizes[1] != sizes[2]


@pytest.mark.parametrize("packed", [False, True])
def test_a_resume_goes_on_where_the_run_stopped(packed):
    (steps,) = world(1, packed=packed)
    whole = list(islice(steps.after(), 70))
    resumed = islice(steps.after(SimpleNamespace(step=31)), 39)
    assert [[b.rows for b in s] for s in resumed] == [[b.rows for b in s] for s in whole[31:]]


def test_without_shuffle_rows_come_in_the_order_of_the_data():
    (steps,) = world(1, shuffle=False, gradient_accumulation_steps=2)
    first = next(steps.after())
    assert [batch.rows for batch in first] == [("memory:1", "memory:2"), ("memory:3", "memory:4")]


def test_max_steps_per_epoch_ends_an_epoch_early():
    (steps,) = world(1, max_steps_per_epoch=3)
    assert steps.per_epoch == 3
    found = [[b.rows for b in s] for s in islice(steps.after(), 6)]
    assert found[:3] == [[b.rows for b in s] for s in steps.epoch(0)]
    assert found[3:] == [[b.rows for b in s] for s in steps.epoch(1)]


def test_a_rank_without_rows_gets_an_idle_batch():
    last = [list(rank.epoch(0))[-1] for rank in world(6, batch_size=1)]  # 53 rows: 5 are left
    assert [len(batches) for batches in last] == [1] * 6
    assert sorted(len(batch.rows) for (batch,) in last) == [0, 1, 1, 1, 1, 1]


def test_ranks_get_about_as_many_tokens():
    lists = list(zip(*(rank.epoch(0) for rank in world(2, batch_size=8)), strict=True))
    apart = [abs(a[0].num_tokens - b[0].num_tokens) for a, b in lists[:-1]]
    assert max(apart) <= 20  # one longest row at most


def test_validation_sees_each_row_once_and_as_many_batches_on_each_rank():
    shares = [
        list(validation_batches(documents(), batch_size=4, max_seq_len=20, rank=rank, size=3))
        for rank in range(3)
    ]
    assert len({len(share) for share in shares}) == 1
    rows = [row for share in shares for batch in share for row in batch.rows]
    assert sorted(rows) == sorted(f"memory:{line}" for line in range(1, 54))


def test_a_row_longer_than_a_micro_batch_is_named():
    with pytest.raises(DataError, match=r"20 tokens.*holds 10\n  at memory:\d+"):
        Steps(documents(), batch_size=4, max_seq_len=10)
    with pytest.raises(DataError, match="E-DATA-EMPTY"):
        Steps(Documents.of([]), batch_size=4, max_seq_len=10)


@pytest.mark.parametrize("packed", [False, True])
def test_equal_identities_are_equal_steps(packed):
    alone, pair = (
        world(1, packed=packed, gradient_accumulation_steps=2)[0],
        world(2, packed=packed)[0],
    )
    assert alone.identity() == pair.identity()
    for change in ({"seed": 8}, {"shuffle": False}, {"max_steps_per_epoch": 3}, {"batch_size": 1}):
        assert world(2, packed=packed, **change)[0].identity() != pair.identity()
    half = world(2, packed=packed, batch_size=1, gradient_accumulation_steps=2)[0]
    assert (half.identity() == pair.identity()) is not packed  # smaller budgets, other neighbours
