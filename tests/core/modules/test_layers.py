"""Small layers against their formulas and transformers."""

import pytest
import torch
import torch.nn.functional as F
from torchtune.errors import ConfigError
from torchtune.modules import RMSNorm, Rope, SwiGLU, rotate


def test_the_norm_is_its_formula_in_fp32():
    norm = RMSNorm(16, eps=1e-5).to(torch.bfloat16)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(5, 16, dtype=torch.bfloat16)
    exact = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5)
    expected = exact * norm.weight.float()
    torch.testing.assert_close(norm(x).float(), expected, atol=0, rtol=2**-7)


def test_the_norm_has_the_gradients_of_torchs():
    x = torch.randn(4, 6, dtype=torch.double, requires_grad=True)
    weight = torch.randn(6, dtype=torch.double, requires_grad=True)
    norm = RMSNorm(6)

    def ours(x, weight):
        return torch.func.functional_call(norm, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(ours, (x, weight))
    torch.testing.assert_close(ours(x, weight), F.rms_norm(x, (6,), weight, 1e-5))


def test_the_feed_forward_is_its_formula_in_value_and_gradient():
    layer = SwiGLU(8, 12).double()
    x = torch.randn(3, 8, dtype=torch.double, requires_grad=True)
    gate, up = layer.gate_proj(x), layer.up_proj(x)
    torch.testing.assert_close(layer(x), layer.down_proj(F.silu(gate) * up))
    assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 64},
    ],
)  # fmt: skip
def test_rotation_is_that_of_transformers(scaling):
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama")
    parameters = {"rope_type": "default", **(scaling or {}), "rope_theta": 500.0}
    config = modeling.LlamaConfig(
        hidden_size=64, num_attention_heads=4, head_dim=16, rope_parameters=parameters
    )
    positions = torch.tensor([0, 1, 7, 100, 1000])
    x = torch.randn(5, 4, 16)
    theirs = modeling.LlamaRotaryEmbedding(config)
    cos, sin = theirs(x, positions.unsqueeze(0))
    heads = x.transpose(0, 1).unsqueeze(0)
    expected, _ = modeling.apply_rotary_pos_emb(heads, heads, cos, sin)
    rotation = Rope(16, base=500.0, scaling=scaling)(positions, torch.float32)
    torch.testing.assert_close(
        rotate(x, rotation), expected[0].transpose(0, 1), atol=1e-5, rtol=1e-5
    )


def test_an_unknown_stretch_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="default, linear, llama3"):
        Rope(16, scaling={"rope_type": "dynamic", "factor": 2.0})
