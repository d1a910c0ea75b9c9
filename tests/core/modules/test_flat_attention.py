"""Attention over flat rows against torch's own, document by document."""

import pytest
import torch
import torch.nn.functional as F
from torchtune.modules import dense_attention, flat_attention

ROWS = [(1,), (5,), (3, 4, 5), (40, 1, 230, 97, 96, 60), (7,) * 9, (900, 3, 5, 800, 2)]


def reference(q, k, v, lengths):
    parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    outs = []
    for part in parts:
        one = [x.transpose(0, 1).unsqueeze(0) for x in part]
        out = F.scaled_dot_product_attention(*one, is_causal=True, enable_gqa=True)
        outs.append(out.squeeze(0).transpose(0, 1))
    return torch.cat(outs)


def rows(lengths, dtype=torch.float32, heads=6, kv_heads=2, size=8):
    generator = torch.Generator().manual_seed(0)
    total = sum(lengths)
    shapes = [(total, heads, size), (total, kv_heads, size), (total, kv_heads, size)]
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("lengths", ROWS, ids=str)
def test_documents_attend_as_if_each_were_alone(lengths):
    ours, theirs = rows(lengths), rows(lengths)
    out, expected = flat_attention(lengths)(*ours), reference(*theirs, lengths)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    out.backward(grad)
    expected.backward(grad)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=0)


def test_half_precision_is_as_exact_as_torch():
    lengths = (40, 12, 90)
    exact = reference(*rows(lengths), lengths)
    halves = rows(lengths, torch.bfloat16)
    theirs = (reference(*halves, lengths).float() - exact).abs().max()
    ours = (flat_attention(lengths)(*halves).float() - exact).abs().max()
    assert ours <= 1.5 * theirs


def test_a_batch_is_causal_without_a_mask():
    q, k, v = (x.unsqueeze(0) for x in rows((20,)))
    torch.testing.assert_close(
        dense_attention(None)(q, k, v)[0],
        flat_attention((20,))(q[0], k[0], v[0]),
        atol=1e-5,
        rtol=0,
    )
