"""What rows mean: every form, told or recognised, and what is wrong with them."""

import json

import pytest
from torchtune.data import Chat, Message, Text, Tokens, load_rows, to_messages
from torchtune.errors import ConfigError, DataError


def write(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def said(messages):
    return [(message.role, message.content) for message in messages]


ONE_TURN = [("user", "Hi?"), ("assistant", "Ho.")]
ASKED, ANSWERED = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho."}
HUMAN, MODEL = {"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Ho."}
PART = {"role": "user", "content": [{"type": "text", "text": "Hi?"}]}
FORMS = {
    "alpaca": {"instruction": "Hi?", "input": "", "output": "Ho."},
    "dolly": {"instruction": "Hi?", "context": "", "response": "Ho.", "category": "x"},
    "messages": {"messages": [ASKED, ANSWERED]},
    "sharegpt": {"conversations": [HUMAN, MODEL]},
    "parts": {"messages": [PART, {"role": "assistant", "content": ["Ho", "."]}]},
    "question": {"question": "Hi?", "answer": "Ho."},
    "completion": {"prompt": "Hi?", "completion": "Ho."},
    "response": {"prompt": "Hi?", "response": "Ho."},
    "trl": {"prompt": [ASKED], "completion": [ANSWERED]},
    "mixed": {"prompt": [ASKED], "completion": "Ho."},
    "json in a cell": {"messages": json.dumps([ASKED, ANSWERED])},
}


@pytest.mark.parametrize("name", FORMS)
def test_each_form_is_recognised_by_its_columns(tmp_path, name):
    rows = load_rows(write(tmp_path, FORMS[name]))
    assert said(rows[0].messages) == said(to_messages(FORMS[name])) == ONE_TURN


def test_instruction_and_input_are_two_texts_for_the_alpaca_prompt():
    (task, _) = to_messages({"instruction": "Add.", "input": "1 2", "output": "3"})
    assert task == Message.task("Add.", "1 2")


def test_text_and_tokens_are_taken_as_they_are(tmp_path):
    rows = load_rows(
        write(
            tmp_path,
            {"text": "Once"},
            {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
            {"tokens": [5, 6], "mask": [0, 1]},
            {"input_ids": [5, 6], "attention_mask": [1, 1]},
        )
    )
    assert list(rows) == [
        Text("Once"),
        Tokens([5, 6, 7], [False, True, True]),
        Tokens([5, 6], [False, True]),
        Tokens([5, 6], [True, True]),
    ]


def test_every_row_of_the_real_files_is_understood(shared):
    counts = {
        "alpaca/alpaca_small.json": 2000,
        "chat/messages_conversations.jsonl": 128,
        "chat/sharegpt_dummy_conversation.json": 500,
        "gsm8k/test.jsonl": 1319,
        "llamafactory_demo/alpaca_en_demo.json": 999,
        "llamafactory_demo/c4_demo.jsonl": 300,
        "llamafactory_demo/glaive_toolcall_en_demo.json": 300,
        "llamafactory_demo/kto_en_demo.json": 300,
        "llamafactory_demo/reason_tool_use_demo_50.jsonl": 50,
        "llamafactory_demo/wiki_demo.txt": 30,
    }
    for name, count in counts.items():
        assert len(list(load_rows(shared / "data" / name))) == count, name


def test_tool_calls_of_sharegpt_and_openai_are_one_form(shared):
    first = next(iter(load_rows(shared / "data/llamafactory_demo/glaive_toolcall_en_demo.json")))
    assert [m.role for m in first.messages[:5]] == [
        "user",
        "assistant",
        "user",
        "assistant",
        "tool",
    ]
    called = to_messages(
        {
            "messages": [
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "function": {
                                "name": "search_recipes",
                                "arguments": '{"ingredients": ["chicken", "bell peppers", "rice"]}',
                            }
                        }
                    ],
                }
            ]
        }
    )
    assert first.messages[3] == called[0]
    (chosen,) = load_rows(
        shared / "data/llamafactory_demo/reason_tool_use_demo_50.jsonl", split="train[:1]"
    )
    assert chosen.messages[2].content.startswith("<think>\nOkay, the user")
    assert {tool["type"] for tool in chosen.tools} == {"function"}


def test_a_turn_may_say_that_it_is_not_trained():
    turns = [
        {"role": "user", "content": "a", "weight": 0},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "assistant", "content": "c", "loss_weight": 1.0},
    ]
    assert [m.trained for m in to_messages({"messages": turns})] == [None, False, True]


def test_answers_inside_a_prompt_are_not_trained():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    messages = to_messages({"prompt": turns, "completion": turns})
    assert [m.trained for m in messages] == [None, False, None, None]


def test_columns_and_paths_can_be_told(tmp_path, shared):
    path = write(tmp_path, {"q": "Hi?", "a": "Ho.", "text": "no"})
    (chat,) = load_rows(path, columns={"question": "q", "answer": "a"})
    assert said(chat.messages) == ONE_TURN
    rows = load_rows(
        shared / "data/alpaca_seed_tasks.jsonl",
        format="alpaca",
        columns={"input": "instances.0.input", "output": "instances.0.output"},
    )
    assert [m.role for row in rows for m in row.messages] == ["user", "assistant"] * 175
    assert rows[1].messages[0].instruct[1] == "Night : Day :: Right : Left"


def halves(row):
    question, answer = row["line"].split("|")
    return [{"role": "user", "content": question}, Message("assistant", answer)]


def test_a_function_of_the_users_own_reads_rows(tmp_path):
    rows = load_rows(write(tmp_path, {"line": "Hi?|Ho."}, {"line": "broken"}), transform=halves)
    assert said(rows[0].messages) == ONE_TURN
    with pytest.raises(DataError, match=r"halves failed on this row: ValueError.*\n  at .*:2"):
        rows[1]


def test_a_config_reaches_no_function_that_is_not_trusted(tmp_path):
    with pytest.raises(ConfigError, match=r"may not name 'os\.system'"):
        load_rows(write(tmp_path, {"line": "x"}), transform="os.system")


BAD = {
    "columns not recognised: chosen, rejected": {"chosen": "a", "rejected": "b"},
    "columns not recognised: sentence, label": {"sentence": "a", "label": 1},
    "unknown role 'narrator' in turn 1": {"messages": [{"role": "narrator", "content": "a"}]},
    "unknown role 7 in turn 1": {"messages": [{"role": 7, "content": "a"}]},
    "turn 1 needs role and content": {"messages": [{"speaker": "a"}]},
    "a list of turns is wanted, found 'hello'": {"messages": "hello"},
    "turn 1 has a part that is no text": {
        "messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]
    },
    "the content of turn 1 is 5, no text": {"messages": [{"role": "user", "content": 5}]},
    "turn 1 has a call that is 'x'": {"conversations": [{"from": "function_call", "value": "x"}]},
    "answer must be text, found int: 3": {"question": "a", "answer": 3},
    "labels are not those of the tokens": {"input_ids": [1, 2, 3], "labels": [2, 3, -100]},
    "3 tokens, but 2 labels": {"input_ids": [1, 2, 3], "labels": [1, 2]},
    "tokens must be a list of integers": {"input_ids": ["a"]},
}


@pytest.mark.parametrize("what", BAD)
def test_a_row_that_means_nothing_is_named_with_its_line(tmp_path, what):
    rows = load_rows(write(tmp_path, {"question": "a", "answer": "b"}, BAD[what]))
    with pytest.raises(DataError) as found:
        rows[1]
    assert what in found.value.what
    assert found.value.where.endswith("rows.jsonl:2")
    assert len(str(found.value).splitlines()) <= 3


def test_optional_columns_may_come_and_go(tmp_path):
    with_input = {"instruction": "Add.", "input": "1 2", "output": "3"}
    rows = load_rows(write(tmp_path, {"instruction": "a", "output": "b"}, with_input))
    assert rows[1].messages[0].instruct == ("Add.", "1 2")


def test_wrong_words_get_the_nearest_right_one(tmp_path):
    path = write(tmp_path, {"text": "a"})
    with pytest.raises(ConfigError, match="did you mean 'alpaca'"):
        load_rows(path, format="alpacca")
    with pytest.raises(ConfigError, match=r"dataset\.columns\n  did you mean 'question'"):
        load_rows(path, columns={"qestion": "q"})
    with pytest.raises(ConfigError, match="it can be all or last"):
        load_rows(path, train_on="first")


def test_a_chat_holds_its_tools(tmp_path):
    tools = [{"name": "f", "parameters": {}}]
    row = {"messages": FORMS["messages"]["messages"], "tools": json.dumps(tools)}
    (chat,) = load_rows(write(tmp_path, row))
    assert isinstance(chat, Chat)
    assert chat.tools == [{"type": "function", "function": tools[0]}]


@pytest.mark.parametrize("text", ["[]", "[1, 2]", '[{"name": "x"}]', '[{"role": "admin"}]', "{}"])
def test_an_answer_that_is_json_stays_text(text):
    """As in data that teaches a model to write JSON; turns are told by their keys."""
    row = {"prompt": text, "completion": text}
    assert said(to_messages(row)) == [("user", text), ("assistant", text)]
    assert said(to_messages({"prompt": "?", "completion": json.dumps([ANSWERED])})) == [
        ("user", "?"),
        ("assistant", "Ho."),
    ]


@pytest.mark.parametrize("weight", ["0", "false", 0.5, -1, [0]])
def test_a_weight_that_is_neither_0_nor_1_is_refused(weight):
    with pytest.raises(DataError, match=r"turn 2 has the weight"):
        to_messages({"messages": [ASKED, ANSWERED | {"weight": weight}]})


def test_weights_of_0_and_1_say_what_is_trained():
    turns = [ANSWERED | {key: value} for key, value in (("weight", 0), ("train", True))]
    turns += [ANSWERED | {"loss_weight": 1.0}, ANSWERED | {"trained": None}]
    trained = [turn.trained for turn in to_messages({"messages": turns})]
    assert trained == [False, True, True, None]


def test_a_call_of_sharegpt_is_one_in_any_case():
    call = {"from": "Function_Call", "value": '{"name": "f", "arguments": {"a": 1}}'}
    (turn,) = to_messages({"conversations": [call]})
    assert turn.tool_calls[0]["function"] == {"name": "f", "arguments": {"a": 1}}


def test_padding_of_ready_tokens_is_left_out(tmp_path):
    padded = {"input_ids": [5, 6, 1, 1], "attention_mask": [1, 1, 0, 0]}
    left = {"input_ids": [1, 5, 6], "attention_mask": [0, 1, 1], "labels": [-100, -100, 6]}
    rows = load_rows(write(tmp_path, padded, left, {"tokens": [5], "attention_mask": [1, 1]}))
    assert rows[0] == Tokens([5, 6], [True, True])
    assert rows[1] == Tokens([5, 6], [False, True])
    with pytest.raises(DataError, match="1 tokens, but 2 values of attention_mask"):
        rows[2]


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ([], "columns not recognised: the row has none"),
        (["instruction;output"], "';' stands in a name where a comma parts columns"),
        (["<|a|>", "<|b|>"], "columns not recognised: <|a|>, <|b|>"),
        (["instruction", " output"], "there are spaces around a name"),
    ],
)
def test_columns_that_look_wrong_are_told_apart(columns, what):
    with pytest.raises(DataError) as caught:
        to_messages(dict.fromkeys(columns, "x"))
    assert what in caught.value.what
