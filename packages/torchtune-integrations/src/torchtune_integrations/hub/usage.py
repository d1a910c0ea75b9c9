"""How a published model is loaded, as a reader of its card would copy it."""

from collections.abc import Mapping
from typing import Any

__all__ = ["usage"]

VLLM_RANK = 16
"""The largest rank that vLLM takes without being told (its ``--max-lora-rank``)."""


def usage(repo: str, *, base: str | None, adapter: Mapping[str, Any], chat: bool) -> str:
    """Return a card's section on transformers, PEFT (for an adapter), vLLM and torchtune.

    Args:
        repo: Where the model is, ``USER/NAME``.
        base: The base's id; an adapter has one.
        adapter: Its adapter_config.json; empty for whole weights.
        chat: Whether it has a chat template.
    """
    parts = ["## How to use it", "With transformers:", _python(_transformers(repo, chat))]
    if adapter:
        parts[1] = "With transformers, which reads adapters where PEFT is installed:"
        parts += ["With PEFT:", _python(_peft(repo, chat))]
    parts += ["With vLLM:", _shell(_vllm(repo, base, adapter))]
    parts += ["With torchtune:", _shell(_torchtune(repo, base if adapter else None))]
    return "\n\n".join(parts)


def _python(code: str) -> str:
    return f"```python\n{code}\n```"


def _shell(code: str) -> str:
    return f"```sh\n{code}\n```"


def _transformers(repo: str, chat: bool) -> str:
    return f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repo}")
model = AutoModelForCausalLM.from_pretrained("{repo}")
{_answer(chat)}"""


def _peft(repo: str, chat: bool) -> str:
    return f"""\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repo}")
model = AutoPeftModelForCausalLM.from_pretrained("{repo}")
{_answer(chat)}"""


def _answer(chat: bool) -> str:
    inputs = 'inputs = tokenizer("Once upon a time", return_tensors="pt")'
    if chat:
        inputs = """\
messages = [{"role": "user", "content": "Hello! Who are you?"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)"""
    return f"""\
{inputs}
output = model.generate(**inputs, max_new_tokens=64)
answer = output[0][inputs["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))"""


def _vllm(repo: str, base: str | None, adapter: Mapping[str, Any]) -> str:
    if not adapter:
        return f"vllm serve {repo}"
    rank = adapter.get("r", 0)
    wide = f" --max-lora-rank {rank}" if rank > VLLM_RANK else ""
    name = repo.rpartition("/")[2]
    return f"vllm serve {base} --enable-lora{wide} --lora-modules {name}={repo}"


def _torchtune(repo: str, base: str | None) -> str:
    name = repo.rpartition("/")[2]
    first = [f"tune download {base}"] if base else []
    generate = f'tune generate --checkpoint ./models/{name} --prompt "Hello! Who are you?"'
    return "\n".join([*first, f"tune download {repo}", generate])
