"""Which tokens are drawn, and how often, against probabilities worked out by hand."""

import pytest
import torch
from torch.testing import assert_close
from torchtune.errors import ConfigError, Faults
from torchtune.generation import Sampling, sample
from transformers.generation import logits_process as theirs


def seeded(seed):
    return torch.Generator().manual_seed(seed)


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
        ({"min_p": 0.4}, [0, 2 / 3, 0, 1 / 3]),
        ({"temperature": 0}, [0, 1, 0, 0]),
    ],
)
def test_frequencies_are_the_probabilities_that_are_left(options, wanted):
    logits = PROBABILITIES.log().expand(20_000, 4)
    drawn = sample(logits, Sampling(**{"temperature": 1.0, **options}), generator=seeded(0))
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert_close(shares, torch.tensor(wanted, dtype=torch.float32), rtol=0, atol=0.012)
    assert (shares[torch.tensor(wanted) == 0] == 0).all()


def test_the_same_seed_draws_the_same():
    logits = torch.randn(64, 50, generator=torch.Generator().manual_seed(1))
    one, two, other = (
        sample(logits, Sampling(temperature=1.0), generator=seeded(seed)) for seed in (7, 7, 8)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def kept_by_transformers(logits, ids, options):
    """Return the probabilities that transformers' processors leave, in the order of its generate."""
    options = dict(options)
    chain = [
        (theirs.RepetitionPenaltyLogitsProcessor, options.pop("repetition_penalty", None)),
        (theirs.TemperatureLogitsWarper, options.pop("temperature")),
        (theirs.TopKLogitsWarper, options.pop("top_k", None)),
        (theirs.TopPLogitsWarper, options.pop("top_p", None)),
        (theirs.MinPLogitsWarper, options.pop("min_p", None)),
    ]
    for kind, value in chain:
        logits = logits if value is None else kind(value)(ids, logits)
    return logits.softmax(-1)


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 7},
        {"top_p": 0.7},
        {"min_p": 0.2},
        {"repetition_penalty": 1.8},
        {"repetition_penalty": 0.6, "temperature": 1.7, "top_k": 25, "top_p": 0.9, "min_p": 0.08},
    ],
)
def test_what_is_drawn_has_the_probabilities_that_transformers_leaves(options):
    options = {"temperature": 0.8, **options}
    logits = 2 * torch.randn(1, 40, generator=seeded(3))
    ids = torch.tensor([[3, 9, 9, 30, 31]])
    seen = torch.zeros(1, 40, dtype=torch.bool)
    seen[0, ids[0]] = True
    many = 40_000
    wide = (logits.expand(many, -1), Sampling(**options))
    drawn = sample(*wide, seen=seen.expand(many, -1), generator=seeded(0))
    wanted = kept_by_transformers(logits, ids, options)[0]
    shares = torch.bincount(drawn, minlength=40) / many
    assert_close(shares, wanted, rtol=0, atol=0.012)
    assert ((shares > 0) <= (wanted > 0)).all()


@pytest.mark.parametrize(
    ("logits", "wanted"),
    [([2.0, 1.5], 1), ([2.0, 1.2], 0), ([-1.0, -1.2], 1), ([-1.0, -1.6], 0)],
)
def test_the_penalty_takes_from_logits_on_both_sides_of_zero(logits, wanted):
    seen = torch.tensor([[True, False]])
    chosen = sample(torch.tensor([logits]), Sampling(repetition_penalty=1.5), seen=seen)
    assert chosen.tolist() == [wanted]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**options)
    with pytest.raises(Faults, match=r"temperature(.|\n)*top_k"):
        Sampling(temperature=-1.0, top_k=0)
