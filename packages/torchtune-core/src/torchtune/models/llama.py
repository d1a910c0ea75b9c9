"""The Llama family: Llama 2, 3, 3.1, 3.2, 3.3, Code Llama, SmolLM2 and TinyLlama are one builder.

Sizes are those of the published config.json files, by their names on the hub (`HUB_NAMES`).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torchtune.errors import ConfigError
from torchtune.modules import Attention, Block, Decoder, RMSNorm, Rope, SwiGLU

__all__ = ["HUB_NAMES", "SIZES", "from_hf_config", "llama"]


def llama(
    *,
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    embed_dim: int,
    intermediate_dim: int,
    max_seq_len: int,
    head_dim: int | None = None,
    rope_base: float = 10_000.0,
    rope_scaling: Mapping[str, Any] | None = None,
    norm_eps: float = 1e-5,
    tied: bool = False,
    attention_bias: bool = False,
    mlp_bias: bool = False,
) -> Decoder:
    """Build a Llama decoder (Touvron et al., 2023; Grattafiori et al., 2024).

    Args:
        vocab_size: Number of token ids.
        num_layers: Number of blocks.
        num_heads: Query heads of a block.
        num_kv_heads: Key and value heads of a block; divides `num_heads`.
        embed_dim: Size of the hidden states.
        intermediate_dim: Inner size of the feed-forward layers.
        max_seq_len: Positions the model was made for.
        head_dim: Size of one head; `embed_dim // num_heads` where not given.
        rope_base: Base of the rotary frequencies.
        rope_scaling: As in a config.json; see `torchtune.modules.rope_frequencies`.
        norm_eps: Added to the mean square in norms.
        tied: Whether the output matrix is the embedding.
        attention_bias: Whether attention's linear layers have biases.
        mlp_bias: Whether the feed-forward linear layers have biases.

    Raises:
        ConfigError: Sizes that do not divide, or a rope scaling that is not supported.
    """
    if num_heads % num_kv_heads or (head_dim is None and embed_dim % num_heads):
        what = f"{embed_dim=} {num_heads=} {num_kv_heads=} do not divide"
        raise ConfigError("E-MODEL-SIZES", what, where="model")
    arguments = dict(locals())
    head_dim = head_dim or embed_dim // num_heads
    blocks = [
        Block(
            attention=Attention(
                embed_dim, heads=num_heads, kv_heads=num_kv_heads, head_dim=head_dim,
                bias=attention_bias,
            ),
            mlp=SwiGLU(embed_dim, intermediate_dim, bias=mlp_bias),
            attention_norm=RMSNorm(embed_dim, eps=norm_eps),
            mlp_norm=RMSNorm(embed_dim, eps=norm_eps),
        )
        for _ in range(num_layers)
    ]  # fmt: skip
    return Decoder(
        vocab_size=vocab_size,
        dim=embed_dim,
        blocks=blocks,
        norm=RMSNorm(embed_dim, eps=norm_eps),
        rope=Rope(head_dim, base=rope_base, scaling=rope_scaling),
        tied=tied,
        max_positions=max_seq_len,
        hf_config=_hf_config({**arguments, "head_dim": head_dim}),
        tensor_plan=TENSOR_PLAN,
    )


TENSOR_PLAN = {
    "input_layernorm": "gather", "q_proj": "column", "k_proj": "key heads", "v_proj": "key heads",
    "o_proj": "row", "post_attention_layernorm": "gather", "gate_proj": "column",
    "up_proj": "column", "down_proj": "row",
}  # fmt: skip
"""How tensor parallel cuts a block; see `torchtune.distributed.tensor_parallel`."""


KEYS = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "embed_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "head_dim": "head_dim",
    "rope_base": "rope_theta",
    "rope_scaling": "rope_scaling",
    "norm_eps": "rms_norm_eps",
    "tied": "tie_word_embeddings",
    "attention_bias": "attention_bias",
    "mlp_bias": "mlp_bias",
}
"""Our argument's name to the key of a config.json."""

OPTIONAL = {
    "num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "rms_norm_eps",
    "tie_word_embeddings", "attention_bias", "mlp_bias",
}  # fmt: skip


def _hf_config(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the config.json of a model built with `arguments`."""
    scaling = arguments["rope_scaling"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        **{key: arguments[ours] for ours, key in KEYS.items()},
        "rope_scaling": dict(scaling) if scaling else None,
    }


def from_hf_config(config: Mapping[str, Any], *, where: str = "config.json") -> Decoder:
    """Build the decoder that a Llama config.json describes, without weights.

    Args:
        config: The file's content, in the layout of transformers 4 or 5.
        where: The file's name for error messages.

    Raises:
        ConfigError: A key is missing, or asks for what this builder does not do.
    """
    config = {**config, **_rope_keys(config)}
    if missing := [key for key in KEYS.values() if key not in config and key not in OPTIONAL]:
        raise ConfigError("E-MODEL-CONFIG", f"keys are missing: {', '.join(missing)}", where=where)
    if config.get("hidden_act", "silu") != "silu":
        what = f"hidden_act {config['hidden_act']!r} is not supported, only 'silu'"
        raise ConfigError("E-MODEL-CONFIG", what, where=where)
    if faults := [*_wrong_values(config), *_asks_for_more(config)]:
        raise ConfigError("E-MODEL-CONFIG", "; ".join(faults), where=where)
    defaults = {"num_key_value_heads": config["num_attention_heads"], "rms_norm_eps": 1e-6}
    values = {**defaults, **{key: value for key, value in config.items() if value is not None}}
    model = llama(**{ours: values[key] for ours, key in KEYS.items() if key in values})
    model.hf_config = {key: value for key, value in config.items() if key != "rope_parameters"}
    return model


def _rope_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `rope_theta` and `rope_scaling` from transformers 5's `rope_parameters`, if present."""
    rope = config.get("rope_parameters")
    if not rope or not isinstance(rope, Mapping):
        return {"rope_scaling": rope} if rope else {}
    apart = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    scaling = {key: value for key, value in rope.items() if key not in apart}
    return {**apart, "rope_scaling": None if rope.get("rope_type") == "default" else scaling}


SIZE_KEYS = (
    "vocab_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size",
    "intermediate_size", "max_position_embeddings", "head_dim",
)  # fmt: skip

NEUTRAL = {
    "quantization_config": None, "sliding_window": None, "partial_rotary_factor": 1,
    "attn_logit_softcapping": None, "final_logit_softcapping": None,
}  # fmt: skip
"""Keys that mean another computation, and the value with which they do not."""


def _wrong_values(config: Mapping[str, Any]) -> list[str]:
    """Name each size that is no whole number above 0, and each number or mapping that is none."""
    checks = [
        *((key, _is_size, "a whole number above 0") for key in SIZE_KEYS),
        *((key, _is_number, "a number above 0") for key in ("rope_theta", "rms_norm_eps")),
        ("rope_scaling", lambda value: isinstance(value, Mapping), "an object"),
    ]
    return [
        f"{key} must be {wanted}, found {config[key]!r}"
        for key, fits, wanted in checks
        if not (config.get(key) is None and key in OPTIONAL) and not fits(config[key])
    ]


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and value > 0


def _asks_for_more(config: Mapping[str, Any]) -> list[str]:
    """Name what the config asks for and would silently not get."""
    window = config.get("sliding_window")
    whole = config.get("use_sliding_window") is False or (
        _is_size(window) and window >= config["max_position_embeddings"]
    )
    return [
        f"{key} {str(config[key])[:60]} is not supported"
        for key, neutral in NEUTRAL.items()
        if config.get(key) not in (None, neutral) and not (key == "sliding_window" and whole)
    ]


def _llama2(**sizes: Any) -> dict[str, Any]:
    return {"vocab_size": 32_000, "max_seq_len": 4096, **sizes}


def _llama3(**sizes: Any) -> dict[str, Any]:
    common = {"vocab_size": 128_256, "num_kv_heads": 8, "max_seq_len": 8192, "rope_base": 500_000.0}
    return {**common, **sizes}


def _llama3_1(factor: float = 8.0, **sizes: Any) -> dict[str, Any]:
    scaling = {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    return _llama3(max_seq_len=131_072, rope_scaling=scaling, **sizes)


def _code_llama(**sizes: Any) -> dict[str, Any]:
    return {"vocab_size": 32_016, "max_seq_len": 16_384, "rope_base": 1_000_000.0, **sizes}


def _smollm2(**sizes: Any) -> dict[str, Any]:
    return {
        "vocab_size": 49_152,
        "max_seq_len": 8192,
        "rope_base": 100_000.0,
        "tied": True,
        **sizes,
    }


_7B = dict(num_layers=32, num_heads=32, num_kv_heads=32, embed_dim=4096, intermediate_dim=11_008)
_13B = dict(num_layers=40, num_heads=40, num_kv_heads=40, embed_dim=5120, intermediate_dim=13_824)
_70B = dict(num_layers=80, num_heads=64, num_kv_heads=8, embed_dim=8192, intermediate_dim=28_672)
_34B = dict(num_layers=48, num_heads=64, num_kv_heads=8, embed_dim=8192, intermediate_dim=22_016)
_8B = dict(num_layers=32, num_heads=32, embed_dim=4096, intermediate_dim=14_336)
_405B = dict(num_layers=126, num_heads=128, embed_dim=16_384, intermediate_dim=53_248)

SIZES: dict[str, dict[str, Any]] = {
    "llama2_7b": _llama2(**_7B),
    "llama2_13b": _llama2(**_13B),
    "llama2_70b": _llama2(**_70B),
    "llama3_8b": _llama3(**_8B),
    "llama3_70b": _llama3(**_70B),
    "llama3_1_8b": _llama3_1(**_8B),
    "llama3_1_70b": _llama3_1(**_70B),
    "llama3_1_405b": _llama3_1(**_405B),
    "llama3_2_1b": _llama3_1(
        32.0, num_layers=16, num_heads=32, embed_dim=2048, intermediate_dim=8192, head_dim=64, tied=True
    ),
    "llama3_2_3b": _llama3_1(
        32.0, num_layers=28, num_heads=24, embed_dim=3072, intermediate_dim=8192, head_dim=128, tied=True
    ),
    "llama3_3_70b": _llama3_1(**_70B),
    "code_llama_7b": _code_llama(**_7B),
    "code_llama_13b": _code_llama(**_13B),
    "code_llama_34b": _code_llama(**{**_34B, "vocab_size": 32_000}),
    "code_llama_70b": _code_llama(**{**_70B, "max_seq_len": 4096, "rope_base": 10_000.0}),
    "smollm2_135m": _smollm2(
        num_layers=30, num_heads=9, num_kv_heads=3, embed_dim=576, intermediate_dim=1536
    ),
    "smollm2_360m": _smollm2(
        num_layers=32, num_heads=15, num_kv_heads=5, embed_dim=960, intermediate_dim=2560
    ),
    "smollm2_1_7b": _smollm2(
        num_layers=24, num_heads=32, num_kv_heads=32, embed_dim=2048, intermediate_dim=8192,
        rope_base=130_000.0,
    ),
    "tinyllama_1_1b": dict(
        vocab_size=32_000, num_layers=22, num_heads=32, num_kv_heads=4, embed_dim=2048,
        intermediate_dim=5632, max_seq_len=2048,
    ),
}  # fmt: skip
"""Arguments of `llama` for each published size; ``llama3_2_1b()`` is ``llama(**SIZES["llama3_2_1b"])``."""

HUB_NAMES = {
    "llama2_7b": "meta-llama/Llama-2-7b-hf",
    "llama2_13b": "meta-llama/Llama-2-13b-hf",
    "llama2_70b": "meta-llama/Llama-2-70b-hf",
    "llama3_8b": "meta-llama/Meta-Llama-3-8B-Instruct",
    "llama3_70b": "meta-llama/Meta-Llama-3-70B-Instruct",
    "llama3_1_8b": "meta-llama/Llama-3.1-8B-Instruct",
    "llama3_1_70b": "meta-llama/Llama-3.1-70B-Instruct",
    "llama3_1_405b": "meta-llama/Llama-3.1-405B-Instruct",
    "llama3_2_1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama3_2_3b": "meta-llama/Llama-3.2-3B-Instruct",
    "llama3_3_70b": "meta-llama/Llama-3.3-70B-Instruct",
    "code_llama_7b": "codellama/CodeLlama-7b-hf",
    "code_llama_13b": "codellama/CodeLlama-13b-hf",
    "code_llama_34b": "codellama/CodeLlama-34b-hf",
    "code_llama_70b": "codellama/CodeLlama-70b-hf",
    "smollm2_135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "smollm2_360m": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "smollm2_1_7b": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "tinyllama_1_1b": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
}
"""Where each size is published."""

llama2_7b = partial(llama, **SIZES["llama2_7b"])
llama2_13b = partial(llama, **SIZES["llama2_13b"])
llama2_70b = partial(llama, **SIZES["llama2_70b"])
llama3_8b = partial(llama, **SIZES["llama3_8b"])
llama3_70b = partial(llama, **SIZES["llama3_70b"])
llama3_1_8b = partial(llama, **SIZES["llama3_1_8b"])
llama3_1_70b = partial(llama, **SIZES["llama3_1_70b"])
llama3_1_405b = partial(llama, **SIZES["llama3_1_405b"])
llama3_2_1b = partial(llama, **SIZES["llama3_2_1b"])
llama3_2_3b = partial(llama, **SIZES["llama3_2_3b"])
llama3_3_70b = partial(llama, **SIZES["llama3_3_70b"])
code_llama_7b = partial(llama, **SIZES["code_llama_7b"])
code_llama_13b = partial(llama, **SIZES["code_llama_13b"])
code_llama_34b = partial(llama, **SIZES["code_llama_34b"])
code_llama_70b = partial(llama, **SIZES["code_llama_70b"])
smollm2_135m = partial(llama, **SIZES["smollm2_135m"])
smollm2_360m = partial(llama, **SIZES["smollm2_360m"])
smollm2_1_7b = partial(llama, **SIZES["smollm2_1_7b"])
tinyllama_1_1b = partial(llama, **SIZES["tinyllama_1_1b"])
