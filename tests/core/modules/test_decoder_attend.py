"""A flat micro-batch whose tokens see others than those of their own document."""

import torch
from torchtune.data import Batch
from torchtune.models import from_pretrained
from torchtune.modules import dense_attention
from torchtune.testing import tiny_checkpoint


def test_two_ends_of_one_beginning_are_as_each_text_alone(tmp_path):
    model = from_pretrained(tiny_checkpoint(tmp_path), dtype=torch.float32).eval()
    beginning, one, other = [5, 6, 7, 8], [9, 10], [11, 12, 13]
    tokens = torch.tensor([*beginning, *one, *other])
    positions = torch.tensor([0, 1, 2, 3, 4, 5, 4, 5, 6])
    visible = torch.ones(9, 9, dtype=torch.bool).tril()
    visible[6:, 4:6] = False
    attend = dense_attention(visible[None])
    row = Batch(tokens, torch.full_like(tokens, -100), positions, (9,), 0)
    found = model(row, attend=lambda q, k, v: attend(q[None], k[None], v[None])[0])
    first, second = (model(torch.tensor([[*beginning, *end]]))[0] for end in (one, other))
    torch.testing.assert_close(found[:6], first, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[6:], second[4:], rtol=1e-5, atol=1e-5)
