"""Rows to documents: what is trained, cut, left out, and refused, here and in worker processes."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from torchtune.data import ChatFormat, Text, auto_tokenizer, load_rows, tokenize_rows
from torchtune.data.workers import map_in_workers
from torchtune.distributed import join_world
from torchtune.errors import DataError, MissingError, TuneError
from torchtune.testing import run_distributed, tiny_checkpoint


@pytest.fixture(scope="module")
def tokenizer(shared):
    return auto_tokenizer(shared / "models" / "stories260k")


def write(folder, *rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ids_of(documents):
    return [part.tolist() for part in documents.tokens.split(documents.lengths.tolist())]


def mask_of(documents):
    return [part.int().tolist() for part in documents.trained.split(documents.lengths.tolist())]


def test_text_begins_with_bos_and_ends_with_eos_all_trained(tmp_path, tokenizer, shared):
    transformers = pytest.importorskip("transformers")
    text = "Once upon a time, there was a little girl."
    documents = tokenize_rows(load_rows(write(tmp_path, {"text": text})), tokenizer, max_seq_len=99)
    reference = transformers.AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    assert ids_of(documents) == [[*reference(text).input_ids, reference.eos_token_id]]
    assert mask_of(documents) == [[1] * len(documents.tokens)]
    assert documents.supervised == len(documents.tokens) - 1  # nothing predicts BOS


def test_a_task_trains_its_answer_and_the_end_token(tmp_path, tokenizer):
    path = write(tmp_path, {"instruction": "Say ho.", "output": "Ho ho."})
    documents = tokenize_rows(load_rows(path), tokenizer, max_seq_len=512)
    trained = documents.tokens[documents.trained].tolist()
    assert trained[-1] == tokenizer.eos_id
    assert tokenizer.decode(trained).strip() == "Ho ho."


def test_ready_tokens_are_taken_as_they_are(tmp_path, tokenizer):
    path = write(tmp_path, {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]})
    documents = tokenize_rows(load_rows(path), tokenizer, max_seq_len=512)
    assert ids_of(documents) == [[1, 2, 3, 4]]
    assert mask_of(documents) == [[0, 0, 1, 1]]


def test_rows_of_a_program_need_no_file(tmp_path, tokenizer):
    rows = [{"text": "Once upon a time."}, {"prompt": "Say ho.", "completion": "Ho."}]
    datasets = pytest.importorskip("datasets")
    read = tokenize_rows(load_rows(write(tmp_path, *rows)), tokenizer, max_seq_len=512)
    given = tokenize_rows(rows, tokenizer, max_seq_len=512)
    table = tokenize_rows(datasets.Dataset.from_list(rows[:1]), tokenizer, max_seq_len=512)
    assert ids_of(read) == ids_of(given)
    assert ids_of(read)[:1] == ids_of(table)
    assert given.where(1) == "memory:2"


@pytest.mark.parametrize("row", ["a text", Text("read before")])
def test_rows_that_are_no_dicts_are_refused_with_their_place(tokenizer, row):
    with pytest.raises(DataError, match="must be an object with named columns, found a") as raised:
        tokenize_rows([{"text": "fine"}, row], tokenizer, max_seq_len=512, progress=False)
    assert raised.value.where == "memory:2"
    assert ("join_documents" in raised.value.do) == isinstance(row, Text)


def test_the_report_says_whether_a_template_was_used(tmp_path, tokenizer):
    def templated(row):
        return tokenize_rows([row], tokenizer, max_seq_len=512, progress=False).report.templated

    assert templated({"question": "Why?", "answer": "Because."})
    assert not templated({"text": "Once upon a time"})
    assert not templated({"input_ids": [1, 5, 6], "labels": [1, 5, 6]})


def test_long_rows_are_cut_from_the_right_without_an_end_token(tmp_path, tokenizer):
    row = {"instruction": "Tell.", "output": "There was a little girl. " * 40}
    path = write(tmp_path, {"text": "Hi."}, row)
    whole = tokenize_rows(load_rows(path), tokenizer, max_seq_len=9999)
    cut = tokenize_rows(load_rows(path), tokenizer, max_seq_len=300)
    assert ids_of(cut)[1] == ids_of(whole)[1][:300]
    assert ids_of(cut)[1][-1] != tokenizer.eos_id
    assert (cut.report.cut, cut.report.longest) == (1, len(ids_of(whole)[1]))
    assert cut.report.cut_rows == (f"{path}:2",)
    assert whole.report.cut == 0


def test_rows_that_train_nothing_are_left_out_and_named(tmp_path, tokenizer):
    chat = {"messages": [{"role": "user", "content": "Hello?"}]}
    masked = {"input_ids": [5, 6], "labels": [5, -100]}  # its one label is the first token
    path = write(tmp_path, {"text": "Hi."}, masked, {"text": "Ho."})
    documents = tokenize_rows(load_rows(path), tokenizer, max_seq_len=512)
    assert [documents.where(0), documents.where(1)] == [f"{path}:1", f"{path}:3"]
    assert documents.report.left_out_rows == (f"{path}:2",)
    assert f"1 row left out, with nothing to train on: {path}:2" in str(documents.report)
    with pytest.raises(DataError, match=r"none of the 2 rows has a token to train on\n  at .*:1"):
        tokenize_rows(load_rows(write(tmp_path, masked, masked)), tokenizer, max_seq_len=512)
    with pytest.raises(MissingError, match="this model has none"):
        tokenize_rows(load_rows(write(tmp_path, chat)), tokenizer, max_seq_len=512)


def test_all_cut_before_their_answers_says_so(tmp_path, tokenizer):
    path = write(tmp_path, {"instruction": "Tell me about it. " * 9, "output": "No."})
    with pytest.raises(DataError, match=r"1 were cut at 20 tokens.*\n.*\n  raise max_seq_len"):
        tokenize_rows(load_rows(path), tokenizer, max_seq_len=20)


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.json", "empty.csv", "empty.txt"])
def test_an_empty_file_is_an_error(tmp_path, tokenizer, name):
    (tmp_path / name).write_text("[]" if name == "empty.json" else "\n")
    with pytest.raises(DataError, match=rf"the data set has no rows\n  at .*{name}"):
        tokenize_rows(load_rows(tmp_path / name), tokenizer, max_seq_len=512)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_row_is_named_wherever_it_is_encoded(tmp_path, tokenizer, workers):
    good, bad = {"input_ids": [1, 2]}, {"input_ids": [1, 512]}
    path = write(tmp_path, *[good] * 200, bad, good)
    with pytest.raises(DataError, match=r"token 512 is not in the vocabulary.*512\n  at .*:201"):
        tokenize_rows(load_rows(path), tokenizer, max_seq_len=9, workers=workers)


def test_workers_give_the_same_documents_in_the_same_order(shared, tokenizer):
    rows = load_rows(shared / "data/alpaca/alpaca_small.json", split="train[:600]")
    here = tokenize_rows(rows, tokenizer, max_seq_len=512)
    there = tokenize_rows(rows, tokenizer, max_seq_len=512, workers=2)
    assert there.tokens.equal(here.tokens) and there.trained.equal(here.trained)
    assert there.offsets.equal(here.offsets) and there.line.equal(here.line)


class Counted(ChatFormat):
    encoded = 0

    def encode(self, *args, **options):
        self.encoded += 1
        return super().encode(*args, **options)


def encoded_together(folder, rows, bad, few):
    world, form = join_world("cpu"), Counted(auto_tokenizer(folder))
    documents = tokenize_rows(load_rows(rows), form, max_seq_len=250, world=world)
    message = ""
    try:
        tokenize_rows(load_rows(bad), form, max_seq_len=250, world=world)
    except DataError as error:
        message = str(error)
    short = tokenize_rows(load_rows(few), form, max_seq_len=250, world=world)
    world.close()
    return documents, form.encoded, message, short


def test_processes_share_the_rows_and_all_get_all_documents(tmp_path, shared, tokenizer):
    masked = {"instruction": "Tell me about it. " * 60, "output": "No."}
    many = [{"text": "Once."}] * 4 + [
        {"instruction": f"Count {n}", "output": "1 2"} for n in range(9)
    ]
    rows = write(tmp_path, *many, masked)
    good, wrong = {"input_ids": [1, 2]}, {"input_ids": [1, 512]}
    bad = write(tmp_path, good, good, wrong, wrong, name="bad.jsonl")
    few = write(tmp_path, {"text": "Once."}, name="few.jsonl")
    folder = shared / "models/stories260k"
    alone = tokenize_rows(load_rows(rows), tokenizer, max_seq_len=250)
    ranks = run_distributed(encoded_together, 3, folder, rows, bad, few)
    for documents, _, message, short in ranks:
        assert documents.digest() == alone.digest() and documents.line.equal(alone.line)
        assert replace(documents.report, seconds=0) == replace(alone.report, seconds=0)
        assert "bad.jsonl:3" in message
        assert len(short) == 1
    assert alone.report.left_out == 1
    assert [count for _, count, _, _ in ranks] == [1, 6, 6]  # one asks what the template can do


def test_a_killed_worker_is_an_error_and_not_a_hang():
    with pytest.raises(TuneError, match="a worker process ended early, exit code 3"):
        list(map_in_workers(os._exit, [3, 3, 3], workers=1))


def test_an_error_in_a_worker_is_raised_here():
    with pytest.raises(ValueError, match="invalid literal"):
        list(map_in_workers(int, ["1", "x"], workers=1))


def test_the_room_is_imported_without_the_heavy_libraries():
    heavy = "{'datasets', 'pandas', 'pyarrow', 'transformers', 'tqdm', 'numpy.random'}"
    code = "import sys, torch; was = set(sys.modules); import torchtune.data; "
    code += f"print({heavy} & (set(sys.modules) - was))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_a_token_that_the_model_has_no_row_for_is_refused_with_its_place(tmp_path):
    """Else torch fails inside the embedding, on a GPU for the whole process."""
    folder = tiny_checkpoint(tmp_path / "model", vocab_size=100)
    (tmp_path / "a.jsonl").write_text('{"text": "!"}\n{"text": "\u00ff"}\n')
    with pytest.raises(DataError, match="the tokenizer gives token") as caught:
        tokenize_rows(load_rows(tmp_path / "a.jsonl"), auto_tokenizer(folder), max_seq_len=9)
    assert caught.value.where == f"{tmp_path / 'a.jsonl'}:2"
