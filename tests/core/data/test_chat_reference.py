"""Token ids of whole conversations, against transformers and against the official formats."""

import json
import shutil

import pytest
from torchtune.data import ChatFormat, Message, auto_tokenizer
from torchtune.errors import ConfigError
from transformers import AutoTokenizer

DAY = "2026-02-03"
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": "\u00e9"}}}
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}},
}
CHATS = {
    "one turn": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
    "system": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "  caf\u00e9 \U0001f680\n\n"},
        {"role": "assistant", "content": "\u4f60\u597d \U0001f468\u200d\U0001f469"},
        {"role": "user", "content": "\nAnd then?"},
        {"role": "assistant", "content": "\n\nIt ended.\n"},
    ],
    "tools": [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"sum": 4}'},
        {"role": "assistant", "content": "It is 4."},
    ],
}
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %}"
    "{% if m.tool_calls %}[TOOL_CALLS] {{ m.tool_calls | tojson }}{{ eos_token }}"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS] {{ m.content }}[/TOOL_RESULTS]"
    "{% else %}{{ m.content + '\n\n' }}{% endif %}{% endfor %}"
)
DATED = (
    "{{- bos_token }}{%- set day = strftime_now('%d %b %Y') %}"
    "{{- '<|im_start|>system\nToday: ' + day + '<|im_end|>\n' }}"
    "{%- for m in messages %}{% if loop.index > 50 %}{% break %}{% endif %}\n"
    "   {{- '<|im_start|>' ~ m.role ~ '\n' }}\n"
    "   {% if m.role == 'assistant' %}\n"
    "      {%- generation %}{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}"
    "{{ '<|im_end|>' }}{% endgeneration %}\n"
    "   {%- else %}{{ m.content | trim }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "own": None,
    "mistral": MISTRAL,
    "chatml": "chatml",
    "llama2": "llama2",
    "zephyr": "zephyr",
    "alpaca": "alpaca",
}


def messages(chat):
    return [Message(m["role"], m["content"], m.get("tool_calls")) for m in chat]


@pytest.fixture
def pair(chatml, tmp_path):
    """Our format and transformers' tokenizer, for one template."""

    def make(template):
        if template and "{" in template:
            (tmp_path / "it.jinja").write_text(template)
            template = str(tmp_path / "it.jinja")
        tokenizer = auto_tokenizer(chatml, template)
        tokenizer.save(tmp_path / "saved")
        return ChatFormat(tokenizer, date=DAY), AutoTokenizer.from_pretrained(tmp_path / "saved")

    return make


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("chat", CHATS)
def test_conversations_equal_transformers(name, chat, pair):
    ours, theirs = pair(TEMPLATES[name])
    if chat != "one turn" and name in ("llama2", "zephyr", "alpaca"):
        chat = "one turn"  # they refuse tools, and alpaca knows no system
    whole = theirs.apply_chat_template(CHATS[chat])["input_ids"]
    assert ours.encode(messages(CHATS[chat])).tokens == whole
    asked = theirs.apply_chat_template(CHATS[chat][:-1], add_generation_prompt=True)["input_ids"]
    assert ours.prompt(messages(CHATS[chat][:-1])) == asked


def test_marks_tools_and_loop_controls_equal_transformers(pair, monkeypatch):
    dated = DATED.replace("strftime_now('%d %b %Y')", "'03 Feb 2026'")
    ours, theirs = pair(dated)
    for chat in CHATS.values():
        found = ours.encode(messages(chat), tools=[TOOL])
        wanted = theirs.apply_chat_template(
            chat, tools=[TOOL], return_assistant_tokens_mask=True, return_dict=True
        )
        assert found.tokens == wanted["input_ids"]
        assert [int(t) for t in found.trained] == wanted["assistant_masks"]


def test_the_date_is_fixed(pair):
    ours, _ = pair(DATED)
    text = ours.tokenizer.decode(ours.prompt(messages(CHATS["one turn"])), special=True)
    assert "Today: 03 Feb 2026<|im_end|>" in text
    with pytest.raises(ConfigError, match="'tomorrow' is no date"):
        ChatFormat(ours.tokenizer, date="tomorrow")


@pytest.mark.parametrize(
    ("family", "file", "template", "chat"),
    [
        ("llama2", "tokenizers/llama2/tokenizer.model", "llama2", "llama2-chat"),
        ("llama3", "tokenizers/llama3/tokenizer.model", "llama3", "llama3"),
    ],
)
def test_official_formats(family, file, template, chat, shared, tmp_path):
    reference = json.loads((shared / "reference/tokenizers.json").read_text())
    shutil.copy(shared / file, tmp_path / "tokenizer.model")
    ours = ChatFormat(auto_tokenizer(tmp_path, template))
    wanted = reference["families"][family]["chats"][chat]
    assert ours.prompt(messages(reference["chat"])) == wanted
    begun = ours.encode(messages(reference["chat"][:3])).tokens
    assert wanted[: len(begun)] == begun


def test_qwen2_chatml_equals_the_reference(qwen2, shared):
    reference = json.loads((shared / "reference/tokenizers.json").read_text())
    ours = ChatFormat(auto_tokenizer(qwen2, "chatml"))
    assert (
        ours.prompt(messages(reference["chat"]))
        == (reference["families"]["qwen2"]["chats"]["chatml"])
    )


@pytest.mark.parametrize("version", ["v1", "v3", "v7"])
def test_mistral_pieces_equal_mistral_common(version, shared, tmp_path):
    reference = json.loads((shared / "reference/tokenizers.json").read_text())
    shutil.copy(
        shared / f"tokenizers/mistral/tokenizer.model.{version}", tmp_path / "tokenizer.model"
    )
    (tmp_path / "it.jinja").write_text(MISTRAL_OFFICIAL[version])
    ours = ChatFormat(auto_tokenizer(tmp_path, str(tmp_path / "it.jinja")))
    wanted = reference["families"][f"mistral_{version}"]["chats"][version]
    assert ours.prompt(messages(reference["chat"])) == wanted


MISTRAL_OFFICIAL = {
    "v1": (
        "{{ bos_token }}{% set system = messages[0].content %}{% for m in messages[1:] %}"
        "{% if m.role == 'user' %}"
        "[INST] {{ system + '\n\n' if loop.first }}{{ m.content }} [/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "v3": (
        "{{ bos_token }}{% set system = messages[0].content %}{% for m in messages[1:] %}"
        "{% if m.role == 'user' %}"
        "[INST]{{ system + '\n\n' if loop.last }}{{ m.content }}[/INST]"
        "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "v7": (
        "{{ bos_token }}{% for m in messages %}"
        "{% if m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]"
        "{% elif m.role == 'user' %}[INST]{{ m.content }}[/INST]"
        "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
}
