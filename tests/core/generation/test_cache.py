"""The cache of keys and values against a forward over everything."""

import pytest
import torch
from torch.testing import assert_close
from torchtune.errors import ConfigError
from torchtune.generation import KVCache


@pytest.mark.parametrize("parts", [[7, 1, 1, 1], [3, 4, 1, 2], [1] * 10])
@pytest.mark.parametrize("padding", [0, 2])
def test_logits_by_parts_are_those_of_one_forward(parts, padding, stories, load):
    model = load(stories)
    tokens = torch.randint(512, (2, 10), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[1, :padding] = False
    whole = model(tokens, mask=mask)
    cache = KVCache.of(model, batch=2, capacity=12)
    pieces = zip(tokens.split(parts, 1), mask.split(parts, 1), strict=True)
    by_parts = torch.cat([model(piece, mask=real, cache=cache) for piece, real in pieces], 1)
    assert_close(by_parts[mask], whole[mask], rtol=0, atol=1e-4)
    assert by_parts.isfinite().all()  # what padding becomes must not reach others as 0 * NaN
    assert cache.length == 10


def test_a_full_cache_takes_no_more(stories, load):
    model = load(stories)
    cache = KVCache.of(model, batch=1, capacity=3)
    model(torch.ones(1, 3, dtype=torch.long), cache=cache)
    with pytest.raises(ConfigError, match=r"E-CACHE-FULL.*4 tokens.*cache of 3"):
        model(torch.ones(1, 1, dtype=torch.long), cache=cache)
