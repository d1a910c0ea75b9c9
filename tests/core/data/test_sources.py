"""Files, folders and parts of them, each row with its file and line; what is wrong is named."""

import csv
import gzip
import json
import sys
from pathlib import Path

import pytest
from torchtune.data import load_rows, open_sources
from torchtune.errors import ConfigError, DataError, MissingError, TuneError

ROWS = [{"prompt": f"q{i}", "completion": f'a, {i}\n"b"'} for i in range(7)]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def as_jsonl(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def rows_of(source, **options):
    return [one.row(i) for one in open_sources(source, **options) for i in range(len(one))]


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(ROWS)
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(ROWS)
    write(tmp_path / "a.jsonl", as_jsonl(ROWS))
    write(tmp_path / "lines.json", as_jsonl(ROWS))
    write(tmp_path / "a.json", json.dumps(ROWS, indent=2))
    write(tmp_path / "object.json", json.dumps({"version": 1, "data": ROWS}))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(as_jsonl(ROWS).encode()))
    for name in (
        *("a.parquet", "saved", "a.csv", "a.jsonl", "lines.json", "a.json", "object.json"),
        "a.jsonl.gz",
    ):
        assert rows_of(tmp_path / name) == ROWS, name


def test_rows_know_the_line_they_begin_on(tmp_path):
    jsonl = write(tmp_path / "a.jsonl", '\ufeff{"text": "one"}\n\n  \n{"text": "two"}')
    array = write(tmp_path / "a.json", '[\n  {"text":\n "one"},\n\n  {"text": "two"}]')
    table = write(tmp_path / "a.csv", 'text,n\r\n"one\r\nmore",1\r\n\r\ntwo,2\r\n')
    for path, lines in ((jsonl, [1, 4]), (array, [2, 5]), (table, [2, 5])):
        (source,) = open_sources(path)
        assert [source.line(0), source.line(1)] == lines
        assert source.row(1)["text"] == "two"
        assert source.where(1) == f"{path}:{lines[1]}"


def test_csv_agrees_with_the_standard_library(tmp_path):
    path = tmp_path / "a.csv"
    rows = [["a", "b"], ["x,\u2028y", 'say "hi"\n'], ["\x85\x0b", "é"], ["", "\r\nend"]]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    assert [list(row.values()) for row in rows_of(path)] == rows[1:]


BROKEN = {
    "cut.jsonl": ('{"text": "a"}\n{"text": \n', ":2", "E-DATA-JSON"),
    "list.jsonl": ('{"text": "a"}\n["b"]\n', ":2", "E-DATA-ROW"),
    "cut.json": ('[{"text": "a"},\n {"text": "b"}\n', ":3", "E-DATA-JSON"),
    "comma.json": ('[{"text": "a"}\n {"text": "b"}]', ":2", "E-DATA-JSON"),
    "string.json": ('[{"text": "a"},\n "b"]', ":2", "E-DATA-ROW"),
    "deep.jsonl": ('{"text": ' + "[" * 200_000 + "\n", ":1", "E-DATA-JSON"),
    "fields.csv": ("a,b\n1,2\n3\n", ":3", "E-DATA-CSV"),
    "quote.csv": ('a,b\n1,2\n"3,4\n', ":3", "E-DATA-CSV"),
    "twice.csv": ("a,a\n1,2\n", ":1", "E-DATA-CSV"),
    "bad.parquet": ("PAR1 nothing", "bad.parquet", "E-DATA-TABLE"),
    "bad.arrow": ("ARROW1 nothing", "bad.arrow", "E-DATA-TABLE"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named_with_its_line(tmp_path, name):
    text, where, code = BROKEN[name]
    path = write(tmp_path / name, text)
    with pytest.raises(DataError) as found:
        rows_of(path)
    assert found.value.code == code
    assert found.value.where.endswith(where)
    assert len(str(found.value).splitlines()) <= 3


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path, name):
    (tmp_path / name).write_bytes(b'[\n"caf\xe9"\n]')
    with pytest.raises(DataError, match=rf"0xe9 is not UTF-8 text\n  at .*{name}:2"):
        rows_of(tmp_path / name)


def test_a_folder_gives_its_split(tmp_path):
    for split in ("train", "validation", "test"):
        write(tmp_path / f"{split}-00000-of-00001.jsonl", as_jsonl([{"text": split}]))
    write(tmp_path / "README.md", "no data")
    write(tmp_path / "dataset_infos.json", "{}")
    assert rows_of(tmp_path) == [{"text": "train"}]
    assert rows_of(tmp_path, split="val") == rows_of(tmp_path, split="validation")
    assert rows_of(tmp_path, split="test") == [{"text": "test"}]
    with pytest.raises(ConfigError, match=r"no split 'extra'; it has test, train, validation"):
        rows_of(tmp_path, split="extra")


def test_files_of_no_split_beside_those_of_train_are_not_dropped_silently(tmp_path):
    for name in ("train.jsonl", "more.jsonl", "test.jsonl"):
        write(tmp_path / name, as_jsonl([{"text": name}]))
    with pytest.raises(ConfigError, match=r"others are of no split: more\.jsonl"):
        rows_of(tmp_path)
    assert rows_of(tmp_path, split="test") == [{"text": "test.jsonl"}]
    (tmp_path / "train.jsonl").unlink()
    assert rows_of(tmp_path) == [{"text": "more.jsonl"}]


def test_blank_lines_before_a_csv_header_are_skipped(tmp_path):
    path = write(tmp_path / "a.csv", "\n\ntext\nx\n")
    assert rows_of(path) == [{"text": "x"}]
    assert open_sources(path)[0].line(0) == 4


def test_a_folder_without_splits_gives_all_files_in_order(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl"):
        write(tmp_path / name, as_jsonl([{"text": name}]))
    assert [row["text"] for row in rows_of(tmp_path)] == ["a.jsonl", "b.jsonl", "deep/c.jsonl"]
    assert [row["text"] for row in rows_of(f"{tmp_path}/*.jsonl")] == ["a.jsonl", "b.jsonl"]
    assert len(rows_of([tmp_path / "a.jsonl", str(tmp_path / "b.jsonl")])) == 2


def test_parts_of_a_split_are_those_of_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    texts = [{"text": str(number)} for number in range(37)]
    write(tmp_path / "a.jsonl", as_jsonl(texts[:20]))
    write(tmp_path / "b.jsonl", as_jsonl(texts[20:]))
    whole = datasets.Dataset.from_list(texts)
    for part in ("[:5]", "[30:]", "[-4:]", "[10:25]", "[:10%]", "[50%:]", "[-20%:]", "[:]"):
        wanted = datasets.ReadInstruction.from_spec(f"train{part}")
        ((split),) = wanted.to_absolute({"train": 37})
        assert rows_of(tmp_path, split=f"train{part}") == whole.to_list()[split.from_ : split.to]
    (source,) = open_sources(tmp_path, split="train[22:23]")
    assert source.where(0) == f"{tmp_path}/b.jsonl:3"


def test_what_is_not_there_is_said(tmp_path, monkeypatch):
    with pytest.raises(MissingError, match=r"there is no file or folder '.*nothing\.jsonl'"):
        load_rows(tmp_path / "nothing.jsonl")
    with pytest.raises(MissingError, match="the folder holds no data files"):
        load_rows(tmp_path)
    with pytest.raises(ConfigError, match=r"files ending in '\.xml' are not known"):
        load_rows(write(tmp_path / "a.xml", "<a/>"))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_rows(write(tmp_path / "a.txt", "a"), split="train[1;2]")


def test_a_hub_id_goes_to_datasets(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(path, name, *, split):
        asked.append((path, name, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = load_rows("someone/something", name="main", split="train[:7]")
    assert asked == [("someone/something", "main", "train[:7]")]
    assert len(rows) == 7
    assert rows.where(6) == "someone/something:7"


@pytest.mark.parametrize("name", ["DatasetNotFoundError", "ConnectionError", "ValueError"])
def test_a_hub_that_does_not_answer_is_a_clear_error(monkeypatch, name):
    datasets = pytest.importorskip("datasets")
    kind = getattr(sys.modules["builtins"], name, None) or getattr(datasets.exceptions, name)

    def load_dataset(*args, **options):
        raise kind("Couldn't reach it\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(TuneError) as found:
        load_rows("someone/something")
    assert found.value.exit_code == (2 if name == "ValueError" else 3)
    assert "long story" not in str(found.value)
