"""Which tokens are drawn, and how often, against probabilities worked out by hand."""

import pytest
import torch
from torch.testing import assert_close
from torchtune.generation import sample

PROBABILITIES = torch.tensor([0.1, 0.5, 0.15, 0.25])


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [0.1, 0.5, 0.15, 0.25]),
        ({"top_k": 2}, [0, 2 / 3, 0, 1 / 3]),
        ({"top_p": 0.5}, [0, 1, 0, 0]),
        ({"top_p": 1e-9}, [0, 1, 0, 0]),
        ({"top_p": 0.8}, [0, 5 / 9, 1.5 / 9, 2.5 / 9]),
        ({"top_k": 2, "top_p": 0.6}, [0, 1, 0, 0]),  # of the two that are left, 2/3 is enough
        ({"top_k": 9, "top_p": 1.0}, [0.1, 0.5, 0.15, 0.25]),
        ({"temperature": 0.5}, [0.01 / 0.345, 0.25 / 0.345, 0.0225 / 0.345, 0.0625 / 0.345]),
        ({"temperature": 0}, [0, 1, 0, 0]),
    ],
)
def test_frequencies_are_the_probabilities_that_are_left(options, wanted):
    logits = PROBABILITIES.log().expand(20_000, 4)
    drawn = sample(logits, generator=torch.Generator().manual_seed(0), **options)
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert_close(shares, torch.tensor(wanted, dtype=torch.float32), rtol=0, atol=0.012)
    assert (shares[torch.tensor(wanted) == 0] == 0).all()


def test_the_same_seed_draws_the_same():
    logits = torch.randn(64, 50, generator=torch.Generator().manual_seed(1))
    one, two, other = (
        sample(logits, generator=torch.Generator().manual_seed(seed)) for seed in (7, 7, 8)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
