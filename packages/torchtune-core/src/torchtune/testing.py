"""For tests of ours and of plug-ins: several processes, a tiny checkpoint, tiny data."""

import contextlib
import io
import json
import runpy
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torchtune.distributed.processes import run_distributed
from torchtune.errors import TuneError

__all__ = ["check_config", "run_distributed", "tiny_checkpoint", "tiny_rows"]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")


def tiny_checkpoint(
    folder: str | Path,
    *,
    seed: int = 0,
    dtype: str = "float32",
    chat_template: str | None = CHATML,
    **config: Any,
) -> Path:
    """Write a random Llama of about 35,000 parameters as the hub has them; return its folder.

    Equal arguments give equal files. The tokenizer has one token a byte and four special ones
    (ids 0 to 3: ``<s> </s> <|im_start|> <|im_end|>``), and puts ``<s>`` in front.

    Args:
        folder: Made where it does not exist.
        seed: Of the weights.
        dtype: Of the stored weights: ``float32`` or ``bfloat16``.
        chat_template: Jinja, ChatML by default; None leaves it out.
        config: Other values for keys of config.json, such as ``hidden_size=64`` or
            ``tie_word_embeddings=True``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**_tiny_config(dtype), **config}
    _write_json(folder / "config.json", settings)
    _write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": [1, 3]})
    _write_weights(folder / "model.safetensors", settings, seed)
    _write_tokenizer(folder)
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    return folder


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _tiny_config(dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 260,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": dtype,
    }


def _weight_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, hidden, vocabulary = (
        config[key] for key in ("hidden_size", "intermediate_size", "vocab_size")
    )
    head = config.get("head_dim") or width // config["num_attention_heads"]
    queries, keys = (head * config[key] for key in ("num_attention_heads", "num_key_value_heads"))
    block = {
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "mlp.gate_proj": (hidden, width),
        "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    shapes["model.norm.weight"] = (width,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocabulary, width)
    return shapes


def _write_weights(path: Path, config: dict[str, Any], seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in _weight_shapes(config).items():
        values = torch.randn(shape, generator=generator)
        # norms near one, the rest small: so the first loss is near the logarithm of the vocabulary
        values = 1.0 + 0.1 * values if len(shape) == 1 else values / shape[1] ** 0.5
        weights[name] = values.to(getattr(torch, config["torch_dtype"]))
    save_file(weights, path, metadata={"format": "pt"})


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    symbols = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    _write_json(folder / "tokenizer_config.json", {**names, "clean_up_tokenization_spaces": False})


def tiny_rows(folder: str | Path, count: int, *, form: str = "alpaca") -> Path:
    """Write `count` short question-and-answer rows as JSONL; return the file.

    Args:
        folder: Made where it does not exist.
        count: How many rows, of lengths that differ.
        form: ``alpaca``, ``messages`` (OpenAI's), ``sharegpt``, ``qa`` or ``text``.
    """
    path = Path(folder) / f"{form}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (_ROW_FORMS[form](*_question(number)) for number in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _question(number: int) -> tuple[str, str]:
    items = " ".join(str(number * 7 % 10 + i) for i in range(number % 5 + 1))
    return f"Repeat: {items}", items


_ROW_FORMS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "alpaca": lambda question, answer: {"instruction": question, "input": "", "output": answer},
    "messages": lambda question, answer: {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    },
    "sharegpt": lambda question, answer: {
        "conversations": [
            {"from": "human", "value": question},
            {"from": "gpt", "value": answer},
        ]
    },
    "qa": lambda question, answer: {"question": question, "answer": answer},
    "text": lambda question, answer: {"text": f"{question}\n{answer}"},
}


def check_config(
    config: str | Path, recipe: str | Path, *, rows: str | Path | None = None, steps: int = 2
) -> list[dict[str, Any]]:
    """Check a config, and let its recipe run it on a tiny model; return the lines of its metrics.

    Only the model's sizes, the tokenizer's files, the rows and the output folder are replaced, no
    other key. The recipe's file runs in this process, as the program that it is.

    Args:
        config: The YAML.
        recipe: The recipe's file; ``tune ls --json`` says where those that ship are.
        rows: The data; by default `tiny_rows`, enough for one epoch of `steps` steps.
        steps: Optimizer steps, where the config does not say ``max_steps`` or ``epochs``.

    Raises:
        ConfigError: The config has faults; several come as `Faults`.
        TuneError: The recipe fails; what it said is in the message.
    """
    from torchtune.config import TuneArgumentParser, read_params

    params: Any = TuneArgumentParser(read_params(recipe)).parse_args(["--config", str(config)])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = rows or tiny_rows(folder, _rows_of(params, steps))
        words = ["--config", str(config), *_replacements(params, folder, Path(rows).resolve())]
        _run_file(recipe, words)
        lines = (folder / "output" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


TINY_BUILDER = {
    **{"vocab_size": 260, "embed_dim": 32, "intermediate_dim": 64, "num_layers": 2},
    **{"num_heads": 4, "num_kv_heads": 2, "head_dim": 8},
}
"""Arguments that make a builder's model the one of `tiny_checkpoint`."""


def _rows_of(params: Any, steps: int) -> int:
    """Return how many of the rows of `tiny_rows`, of some 60 tokens, `steps` steps take."""
    count = steps * params.batch_size * params.gradient_accumulation_steps
    return count * max(1, params.max_seq_len // 60) if params.packed else count


def _replacements(params: Any, folder: Path, rows: Path) -> list[str]:
    model = tiny_checkpoint(folder / "model", max_position_embeddings=2**17)
    words = [f"output_dir={folder / 'output'}"]
    words += [f"checkpoint={model}"] if params.checkpoint else []
    if params.model["_component_"] != "auto":
        words += [f"model.{key}={value}" for key, value in TINY_BUILDER.items()]
    if params.tokenizer["_component_"] != "auto":
        words += ["tokenizer=tokenizer_json", f"tokenizer.path={model / 'tokenizer.json'}"]
    datasets = [key for key in ("dataset", "dataset_val") if getattr(params, key)]
    return words + [f"{key}.source={rows}" for key in datasets]


def _run_file(path: str | Path, words: Sequence[str]) -> None:
    said, before = io.StringIO(), sys.argv
    sys.argv = [str(path), *words]
    try:
        with contextlib.redirect_stderr(said):
            runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise TuneError("E-CHECK-CONFIG", f"{path} failed: {said.getvalue()}") from None
    finally:
        sys.argv = before
