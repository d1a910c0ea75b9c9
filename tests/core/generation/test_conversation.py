"""Conversations against prompts that transformers' templates make of the same turns."""

import shutil

import pytest
import torch
from torchtune.errors import ConfigError, DataError, MissingError
from torchtune.generation import Conversation, Sampling, load_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

TEMPLATE = """
{{- bos_token -}}
{%- for turn in messages -%}
    {%- if turn.role == 'system' and 'forbidden' in turn.content -%}
        {{- raise_exception('no such system message') -}}
    {%- endif -%}
    {{- turn.content | trim + '\\n' -}}
{%- endfor -%}
"""


@pytest.fixture(scope="module")
def folder(stories, tmp_path_factory):
    copy = shutil.copytree(stories, tmp_path_factory.mktemp("chat") / "model")
    (copy / "chat_template.jinja").write_text(TEMPLATE)
    return copy


@pytest.fixture(scope="module")
def loaded(folder):
    return load_checkpoint(folder, dtype="fp32")


def transformers_answer(folder, turns, new_tokens):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer.apply_chat_template(turns, return_tensors="pt")["input_ids"]
    out = model.generate(ids, do_sample=False, max_new_tokens=new_tokens, pad_token_id=0)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_each_answer_is_the_one_to_all_that_was_said(folder, loaded):
    conversation = Conversation(loaded, system="It was a dark night.", max_new_tokens=25)
    turns = [{"role": "system", "content": "It was a dark night."}]
    for question in ("Once upon a time", "Then Tom said", "The cat"):
        turns.append({"role": "user", "content": question})
        wanted = transformers_answer(folder, turns, 25)
        assert "".join(conversation.ask(question)) == wanted
        turns.append({"role": "assistant", "content": wanted})
    assert [turn.as_dict() for turn in conversation.turns] == turns[1:]
    conversation.reset()
    conversation.system = None
    alone = transformers_answer(folder, [{"role": "user", "content": "The cat"}], 25)
    assert "".join(conversation.ask("The cat")) == alone


def test_a_stopped_answer_counts_as_far_as_it_was_said(folder, loaded):
    conversation = Conversation(loaded, max_new_tokens=40)
    pieces = conversation.ask("Once upon a time")
    said = next(pieces) + next(pieces)
    pieces.close()
    turns = [("user", "Once upon a time"), ("assistant", said)]
    assert [(turn.role, turn.content) for turn in conversation.turns] == turns
    asked = [{"role": role, "content": text} for role, text in [*turns, ("user", "Tom")]]
    wanted = transformers_answer(folder, asked, 40)
    assert "".join(conversation.ask("Tom")) == wanted


def test_the_oldest_turns_go_where_positions_are_full(loaded):
    conversation, forgotten = Conversation(loaded, max_new_tokens=8), 0
    for number in range(9):
        answer = "".join(conversation.ask(f"{number} " + "big red ball " * 20))
        assert answer  # there was room
        forgotten += conversation.forgotten
        assert len(conversation.turns) == 2 * (number + 1) - forgotten
    assert forgotten > 4
    assert conversation.turns[-2].content.startswith("8 ")
    with pytest.raises(ConfigError, match="positions are full"):
        conversation.ask("word " * 600)
    assert "".join(conversation.ask("Tom"))


def test_a_question_that_cannot_be_put_changes_nothing(loaded):
    conversation = Conversation(loaded, max_new_tokens=8)
    "".join(conversation.ask("Once"))
    before = list(conversation.turns)
    conversation.system = "forbidden"
    with pytest.raises(DataError, match="no such system message"):
        conversation.ask("Tom")
    assert conversation.turns == before


def test_the_same_seed_is_the_same_conversation_of_different_draws(loaded):
    def talk(seed):
        sampling = Sampling(temperature=1.0, seed=seed)
        conversation = Conversation(loaded, sampling=sampling, max_new_tokens=12)
        return ["".join(conversation.ask("Once upon a time")) for _ in range(2)]

    assert talk(1) == talk(1) != talk(2)


def test_a_model_without_a_template_is_refused_and_told_what_it_can_do(stories):
    with pytest.raises(MissingError, match=r"E-CHAT-TEMPLATE(.|\n)*tune generate --raw"):
        Conversation(load_checkpoint(stories))
