"""The chunked loss against torch's plain one."""

import pytest
import torch
import torch.nn.functional as F
from torchtune.errors import ConfigError
from torchtune.losses import LinearCrossEntropy


def inputs(dtype=torch.float32, tokens=50, vocab=97, dim=16):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, dim, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocab, dim, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(0, vocab, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) < 0.4] = -100
    return hidden, weight, labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 7, 50, 1000])
def test_value_and_gradients_are_the_plain_ones(smoothing, chunk):
    hidden, weight, labels = inputs()
    plain = F.cross_entropy(
        hidden @ weight.t(), labels, reduction="sum", label_smoothing=smoothing
    )  # fmt: skip
    expected = torch.autograd.grad(plain / 3, (hidden, weight))
    loss = LinearCrossEntropy(label_smoothing=smoothing, chunk_tokens=chunk)(hidden, weight, labels)
    gradients = torch.autograd.grad(loss / 3, (hidden, weight))
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)
    for mine, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_the_sum_is_exact_in_half_precision():
    hidden, weight, labels = inputs(torch.bfloat16, tokens=3000)
    exact = F.cross_entropy(hidden.float() @ weight.float().t(), labels, reduction="sum")
    loss = LinearCrossEntropy()(hidden, weight, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=1e-3, atol=0)


def test_a_frozen_matrix_gets_no_gradient_and_costs_none():
    hidden, weight, labels = inputs()
    weight = weight.detach()
    LinearCrossEntropy()(hidden, weight, labels).backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_without_supervised_tokens_the_sum_and_its_gradients_are_zero():
    hidden, weight, labels = inputs()
    loss = LinearCrossEntropy()(hidden, weight, torch.full_like(labels, -100))
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad.abs().sum() == 0
    assert weight.grad.abs().sum() == 0


def test_logits_never_exist_for_more_than_a_chunk():
    """The largest storage that the loss makes is that of a chunk's logits, or of a gradient."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.largest = max(self.largest, out.numel())
            return out

    hidden, weight, labels = inputs(tokens=400, dim=4)
    with Watch() as watch:
        LinearCrossEntropy(chunk_tokens=8)(hidden, weight, labels)
    assert watch.largest == max(8 * 97, weight.numel(), hidden.numel())


def test_backward_runs_once():
    hidden, weight, labels = inputs()
    loss = LinearCrossEntropy()(hidden, weight, labels)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        loss.backward()


@pytest.mark.parametrize("arguments", [{"label_smoothing": 1.0}, {"chunk_tokens": 0}])
def test_numbers_out_of_range_are_refused(arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        LinearCrossEntropy(**arguments)


def test_hidden_states_and_labels_of_other_lengths_are_refused():
    hidden, weight, labels = inputs()
    for states, targets in ((hidden, labels[:9]), (hidden[None], labels[None])):
        with pytest.raises(ValueError, match=r"wanted are hidden \[T, D\] and labels \[T\]"):
            LinearCrossEntropy()(states, weight, targets)
