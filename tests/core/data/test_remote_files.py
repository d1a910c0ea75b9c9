"""Rows that lie on another machine: fsspec's memory and local file systems stand for it."""

import json

import fsspec
import pytest
from fsspec.registry import known_implementations
from torchtune.data import load_rows, local_copy
from torchtune.errors import ConfigError, MissingError


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """fsspec's file system in memory, empty."""
    monkeypatch.setenv("TUNE_CACHE", str(tmp_path / "cache"))
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    return fs


def put(fs, path, *texts):
    fs.pipe_file(path, "".join(json.dumps({"text": text}) + "\n" for text in texts).encode())


def texts(source, **options):
    rows = load_rows(source, **options)
    return [rows[index].text for index in range(len(rows))]


def test_a_file_is_read_and_read_again_when_it_has_changed(memory):
    put(memory, "/bucket/rows.jsonl", "one", "two")
    assert texts("memory://bucket/rows.jsonl") == ["one", "two"]
    assert texts("memory://bucket/rows.jsonl", split="train[1:]") == ["two"]
    put(memory, "/bucket/rows.jsonl", "three")
    assert texts("memory://bucket/rows.jsonl") == ["three"]


def test_a_folder_and_a_pattern_give_their_files(memory):
    put(memory, "/bucket/set/train.jsonl", "one")
    put(memory, "/bucket/set/test.jsonl", "two")
    assert texts("memory://bucket/set") == ["one"]
    assert texts("memory://bucket/set", split="test") == ["two"]
    assert texts("memory://bucket/set/t*.jsonl") == ["two", "one"]


def test_a_copy_is_made_once(memory):
    put(memory, "/bucket/rows.jsonl", "one")
    first = local_copy("memory://bucket/rows.jsonl")
    marked = first.stat().st_mtime_ns
    assert local_copy("memory://bucket/rows.jsonl") == first
    assert first.stat().st_mtime_ns == marked
    assert first.read_bytes() == memory.cat_file("/bucket/rows.jsonl")


@pytest.mark.parametrize(
    ("url", "kind", "said"),
    [
        ("memory://bucket/none.jsonl", MissingError, "E-DATA-MISSING"),
        ("nosuch://bucket/rows.jsonl", ConfigError, "E-REMOTE"),
    ],
)
def test_what_is_not_there_is_named(url, kind, said, memory):
    with pytest.raises(kind, match=said) as found:
        load_rows(url)
    assert url in str(found.value)


def test_a_file_system_without_its_package_says_what_to_install(memory, monkeypatch):
    monkeypatch.setitem(known_implementations, "s3", {
        "class": "s3fs_that_is_not_there.S3FileSystem", "err": "Install s3fs to access S3",
    })  # fmt: skip
    with pytest.raises(MissingError, match=r"Install s3fs to access S3\n.*s3://bucket") as found:
        load_rows("s3://bucket/rows.jsonl")
    assert "pip install s3fs" in str(found.value)
