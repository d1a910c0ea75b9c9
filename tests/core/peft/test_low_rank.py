"""The one-function LoRA layer against its formula."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from torchtune.peft import low_rank_linear


def formula(x, weight, bias, lora_a, lora_b, scale):
    return F.linear(x, weight, bias) + scale * F.linear(F.linear(x, lora_a), lora_b)


def arguments(dtype=torch.float32, bias=True, trained_input=True):
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (3, 5, 24), "weight": (40, 24), "bias": (40,), "a": (4, 24), "b": (40, 4)}
    made = {k: torch.randn(s, generator=generator).to(dtype) / 5 for k, s in shapes.items()}
    for name in ("a", "b", *(["x"] if trained_input else [])):
        made[name].requires_grad_()
    return (made["x"], made["weight"], made["bias"] if bias else None, made["a"], made["b"], 1.7)


def value_and_gradients(function, args):
    out = function(*args)
    out.float().square().sum().backward()
    return [out.detach(), *(a.grad for a in args if isinstance(a, torch.Tensor))]


@pytest.mark.parametrize(("bias", "trained_input"), [*itertools.product([True, False], repeat=2)])
def test_value_and_gradients_are_those_of_the_formula(bias, trained_input):
    ours = value_and_gradients(low_rank_linear, arguments(bias=bias, trained_input=trained_input))
    plain = value_and_gradients(formula, arguments(bias=bias, trained_input=trained_input))
    for got, wanted in zip(ours, plain, strict=True):
        assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_bf16_is_as_near_to_fp32_as_the_formula_is():
    exact = value_and_gradients(
        formula, [a.detach().float().requires_grad_(a.requires_grad) if isinstance(a, torch.Tensor)
                  else a for a in arguments(torch.bfloat16)]
    )  # fmt: skip
    ours = value_and_gradients(low_rank_linear, arguments(torch.bfloat16))
    plain = value_and_gradients(formula, arguments(torch.bfloat16))
    for got, formulas, wanted in zip(ours, plain, exact, strict=True):
        if wanted is not None:
            assert got.dtype == torch.bfloat16
            assert (got - wanted).norm() <= 1.2 * (formulas - wanted).norm()


@pytest.mark.parametrize("way", ["compiled", "recomputed"])
def test_compiled_and_recomputed_forwards_have_the_same_gradients(way):
    ways = {
        "compiled": torch.compile(low_rank_linear, backend="aot_eager", fullgraph=True),
        "recomputed": lambda *args: checkpoint(low_rank_linear, *args, use_reentrant=False),
    }
    got = value_and_gradients(ways[way], arguments())
    for ours, plain in zip(got, value_and_gradients(formula, arguments()), strict=True):
        assert_close(ours, plain, rtol=1e-5, atol=1e-5)
