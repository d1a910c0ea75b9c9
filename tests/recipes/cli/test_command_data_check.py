"""`tune data check`: what it prints where, and its exit codes."""

import json

import pytest


@pytest.fixture
def model(shared):
    return str(shared / "models" / "stories260k")


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


GOOD = {"instruction": "Say ho.", "output": "Ho ho."}
BAD = {"instruction": "Say ho.", "output": ""}


def test_json_is_one_object_a_row_and_nothing_else(tune, model, tmp_path):
    path = write(tmp_path / "rows.jsonl", GOOD, BAD, GOOD)
    done = tune("data", "check", path, "--checkpoint", model, "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 4
    assert [row["row"] for row in rows] == [1, 2, 3]
    assert [row["faults"] for row in rows] == [[], ["empty"], ["duplicate"]]
    for row in rows:
        assert list(row) == ["row", "input_ids", "labels", "faults"]
        pairs = zip(row["input_ids"], row["labels"], strict=True)
        assert all(label in (-100, token) for token, label in pairs)
    assert "2 rows with faults" in done.stderr


def test_rows_are_shown_with_what_is_trained_marked(tune, model, tmp_path):
    path = write(tmp_path / "rows.jsonl", GOOD, BAD)
    done = tune("data", "check", path, "--checkpoint", model, "--rows", "1")
    assert done.returncode == 0
    assert done.stdout.startswith(f"row 1  {path}:1  ")
    assert "### Response:{+Ho ho.</s>+}" in done.stdout
    assert "\033" not in done.stdout
    assert "1 row, " in done.stderr and "no faults found" in done.stderr


def test_rows_are_cut_where_asked(tune, model, tmp_path):
    path = write(tmp_path / "rows.jsonl", {"text": "There was a girl. " * 20})
    options = ("--checkpoint", model, "--max-seq-len", "16", "--json")
    done = tune("data", "check", path, *options)
    (row,) = map(json.loads, done.stdout.splitlines())
    assert len(row["input_ids"]) == len(row["labels"]) == 16
    assert row["faults"] == ["cut answer"]
    assert "is cut at 16" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nothing.jsonl"], 3, "there is no file or folder 'nothing.jsonl'"),
        (["empty.jsonl"], 4, "the data set has no rows"),
        (["rows.jsonl", "--max-seq-len", "513"], 2, "more than the model's 512 positions"),
        (["rows.jsonl", "--rows", "0"], 2, "--rows: is 0"),
        (["rows.jsonl", "--columns", "output"], 2, "'output' is not PART=COLUMN"),
        (["rows.jsonl", "--chat-template", "nothing"], 3, "nothing"),
    ],
)
def test_wrong_use_is_a_clear_error(tune, model, tmp_path, monkeypatch, words, code, said):
    write(tmp_path / "rows.jsonl", GOOD)
    write(tmp_path / "empty.jsonl")
    words[0] = str(tmp_path / words[0]) if code != 3 or len(words) > 1 else words[0]
    done = tune("data", "check", *words, "--checkpoint", model)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr and len(done.stderr.strip().splitlines()) <= 3
