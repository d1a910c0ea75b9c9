"""Every fault that people meet is found in its row, and no row stops the others."""

import json

import pytest
from torchtune.data import CheckSummary, auto_tokenizer, check_rows, load_rows, tokenize_rows
from torchtune.errors import DataError, MissingError


def turns(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


GOOD = turns(("user", "Hi?"), ("assistant", "Ho."))
FAULTY = {
    "unknown role": turns(("user", "Hi?"), ("narrator", "It was night.")),
    "empty": turns(("user", "Hi?"), ("assistant", " ")),
    "no supervised token": turns(("user", "Is anyone there?")),
    "template mismatch": turns(("user", "[INST] Hi? [/INST]"), ("assistant", "Ho.")),
    "cut answer": turns(("user", "Count."), ("assistant", "one two three " * 40)),
    "missing end of turn": {"input_ids": [1, 40, 50], "labels": [-100, 40, 50]},
    "columns not recognised": {"left": 1, "right": 2},
    "not understood": {"text": 5},
    "duplicate": GOOD,
}


def check(folder, tokenizer, *rows, **options):
    path = folder / "rows.jsonl"
    path.write_text(
        "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    )
    options = {"max_seq_len": 99, **options}
    return list(check_rows(load_rows(path), tokenizer, **options))


@pytest.fixture(scope="module")
def tokenizer(chatml):
    return auto_tokenizer(chatml)


@pytest.mark.parametrize("fault", FAULTY)
def test_each_fault_is_found_and_only_it(tmp_path, tokenizer, fault):
    first, second, third = check(
        tmp_path, tokenizer, GOOD, FAULTY[fault], turns(("assistant", "X"))
    )
    assert (first.faults, third.faults) == ((), ())
    assert [found.name for found in second.faults] == [fault]
    assert (second.number, second.where) == (2, f"{tmp_path}/rows.jsonl:2")


def test_a_line_that_is_no_json_stops_nothing(tmp_path, tokenizer):
    rows = check(tmp_path, tokenizer, GOOD, '{"messages": [\n', turns(("assistant", "Ho.")))
    assert [[fault.name for fault in row.faults] for row in rows] == [[], ["unreadable"], []]
    assert str(rows[1].faults[0]).startswith("unreadable: not JSON: Expecting value")


def test_a_template_that_refuses_a_row_is_a_mismatch(tmp_path, shared):
    from torchtune.data import ChatFormat

    tokenizer = auto_tokenizer(shared / "tokenizers" / "llama2", chat_template="llama2")
    rows = check(tmp_path, ChatFormat(tokenizer), turns(("assistant", "a"), ("assistant", "b")))
    assert [fault.name for fault in rows[0].faults] == ["template mismatch"]


def test_labels_stand_at_their_tokens(tmp_path, tokenizer):
    (row,) = check(tmp_path, tokenizer, GOOD)
    trained = [label for label in row.labels if label != -100]
    assert all(label in (-100, token) for token, label in zip(row.tokens, row.labels, strict=True))
    assert tokenizer.decode(trained, special=True) == "Ho.<|im_end|>"
    assert row.supervised == len(trained)


def test_what_is_shown_is_what_is_trained(shared, tokenizer):
    rows = load_rows(shared / "data/chat/messages_conversations.jsonl")
    shown = list(check_rows(rows, tokenizer, max_seq_len=64))
    documents = tokenize_rows(rows, tokenizer, max_seq_len=64)
    assert [t for row in shown for t in row.tokens] == documents.tokens.tolist()
    labels = documents.tokens.where(documents.trained, -100).tolist()
    assert [label for row in shown for label in row.labels] == labels
    assert sum(row.supervised for row in shown) == documents.supervised
    assert sum(row.length > 64 for row in shown) == documents.report.cut > 0


def test_real_files_have_the_faults_that_they_have(shared, tokenizer):
    def found(name, **options):
        summary = CheckSummary()
        for row in check_rows(
            load_rows(shared / "data" / name, **options), tokenizer, max_seq_len=4096
        ):
            summary.add(row)
        return dict(summary.faults)

    assert found("chat/messages_conversations.jsonl") == {}
    twice = found(
        "alpaca_seed_tasks.jsonl", format="alpaca", columns={"output": "is_classification"}
    )
    assert twice == {"not understood": 175}
    alpaca = json.loads((shared / "data/alpaca/alpaca_small.json").read_text())
    blank = sum(not row["output"].strip() for row in alpaca)
    assert found("alpaca/alpaca_small.json").get("empty", 0) == blank


def test_limit_and_summary(tmp_path, tokenizer):
    rows = check(tmp_path, tokenizer, GOOD, GOOD, GOOD, limit=2)
    summary = CheckSummary()
    for row in rows:
        summary.add(row)
    assert (len(rows), summary.faulty) == (2, 1)
    assert "1 row with faults" in str(summary)
    assert "1 duplicate: the same as an earlier row" in str(summary)


def test_half_a_character_is_a_fault_and_no_crash(tmp_path, tokenizer):
    (row,) = check(tmp_path, tokenizer, '{"text": "a \\ud83d b"}\n')
    assert "half of a character" in row.faults[0].detail


def test_nothing_to_check_is_an_error(tmp_path, tokenizer, shared):
    with pytest.raises(DataError, match="no rows"):
        check(tmp_path, tokenizer)
    plain = auto_tokenizer(shared / "models" / "stories260k")
    with pytest.raises(MissingError, match="needs a chat template"):
        check(tmp_path, plain, turns(("user", "a"), ("assistant", "b")))
