"""Types of values and the meaning of a data set's name, case by case."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional

import pytest
from torchtune.config import Component, TuneArgumentParser, checks
from torchtune.config.convert import Converted, convert
from torchtune.config.reader import read_value
from torchtune.errors import ConfigError

BAD = object()


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3", int, 3),
        ("3.0", int, 3),
        ("2.5", int, BAD),
        ("true", int, BAD),
        ("three", int, BAD),
        ("3", float, 3.0),
        ("1e-5", float, 1e-5),
        (".inf", float, float("inf")),
        (".inf", int, BAD),
        ("1e999", float, BAD),
        ("-1e999", float | None, BAD),
        ("1" + "0" * 400, float, BAD),
        (".nan", float, BAD),
        ("true", float, BAD),
        ("yes", bool, True),
        ("1", bool, BAD),
        ("'yes'", bool, BAD),
        ("null", str, BAD),
        ("None", Optional[str], None),  # noqa: UP045 - both spellings are met
        ("None", str | None, None),
        ("07", str, "07"),
        ("no", str, "no"),
        ("[1]", str, "[1]"),
        (" a\n b ", str, " a\n b "),
        ("'1'", str, "1"),
        ("# a", str, "# a"),
        ("\x1b[1m", str, "\x1b[1m"),
        ("", str, ""),
        ("", int, BAD),
        ("auto", bool | str | None, "auto"),
        ("false", bool | str | None, False),
        ("bf16", Literal["bf16", "fp32"], "bf16"),
        ("bf61", Literal["bf16", "fp32"], BAD),
        ("1", Literal[1, 2], 1),
        ("true", Literal[1, 2], BAD),
        ("[1, 2]", list[int], [1, 2]),
        ("[1, x]", list[int], BAD),
        ("a", list[str], BAD),
        ("[a]", Sequence[str], ["a"]),
        ("[1, 2]", tuple[float, float], (1.0, 2.0)),
        ("[1]", tuple[float, float], BAD),
        ("[1, 2, 3]", tuple[int, ...], (1, 2, 3)),
        ("{a: 1}", dict[str, float], {"a": 1.0}),
        ("{a: b}", dict[str, float], BAD),
        ("a/b", Path, Path("a/b")),
        ("{a: [1]}", Any, {"a": [1]}),
        ("all", str | list[str], "all"),
        ("[q, v]", str | list[str], ["q", "v"]),
    ],
)
def test_a_value_becomes_the_type_or_a_fault(text, kind, value):
    into = Converted()
    found = convert(read_value(text), kind, "key", into)
    if value is BAD:
        assert into.faults and into.faults[0].code == "E-CONFIG-TYPE"
        assert "'key" in into.faults[0].what and "found" in into.faults[0].what
    else:
        assert not into.faults and found == value and type(found) is type(value)


def test_text_in_a_file_is_no_list(faults):
    (fault,) = faults("output_dir: [1]\n")
    assert "must be text, found [1]" in fault.what


def test_a_fault_inside_a_list_names_its_place():
    into = Converted()
    convert(read_value("[{a: 1}, {a: x}]"), list[dict[str, int]], "key", into)
    (fault,) = into.faults
    assert fault.where == "key[1].a, command line" and "an integer, found 'x'" in fault.what


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to be in, with one file and one folder that is called like a component."""
    (tmp_path / "mine.jsonl").write_text("{}\n")
    (tmp_path / "alpaca").mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("mine.jsonl", {"_component_": "rows", "source": "mine.jsonl"}),
        ("./absent.jsonl", {"_component_": "rows", "source": "./absent.jsonl"}),
        ("absent.jsonl", {"_component_": "rows", "source": "absent.jsonl"}),
        ("./*.jsonl.gz", {"_component_": "rows", "source": "./*.jsonl.gz"}),
        ("tatsu-lab/alpaca", {"_component_": "rows", "source": "tatsu-lab/alpaca"}),
        ("alpaca_cleaned", {"_component_": "alpaca_cleaned"}),
        ("alpaca", {"_component_": "rows", "source": "alpaca"}),
        ("torch.nn.Identity", {"_component_": "torch.nn.Identity"}),
    ],
)
def test_a_dataset_is_a_path_then_a_name_then_a_hub_id(parse, here, word, wanted):
    assert parse("", "--dataset", word).dataset == wanted
    assert parse(f"dataset_val: {word}\n").dataset_val == wanted


def test_arguments_stay_with_a_dataset_given_as_a_path(parse, here):
    found = parse("", "--dataset", "mine.jsonl", "dataset.train_on=last").dataset
    assert found == {"_component_": "rows", "source": "mine.jsonl", "train_on": "last"}


def test_a_component_written_out_is_no_path(parse, here):
    assert parse("dataset_val: {_component_: alpaca}\n").dataset_val == {"_component_": "alpaca"}


@pytest.mark.parametrize("word", ["x" * 5000, "~nobody-here/x"])
def test_what_can_be_no_path_does_not_exist(parse, here, word):
    assert parse("", f"dataset={word}/y").dataset["source"] == f"{word}/y"


def test_an_unknown_dataset_names_all_three_ways(faults, here):
    (fault,) = faults("", "dataset=alpca")
    assert all(word in fault.what for word in ("existing path", "alpaca_cleaned", "hub id"))
    assert fault.do == "did you mean 'alpaca'?"


@dataclass
class NeedsRows:
    dataset: Component | None = None

    def __post_init__(self) -> None:
        with checks(self) as check:
            check.that(bool(self.dataset), "dataset", "there is nothing to train on")


@pytest.mark.parametrize(
    ("word", "what"), [("alpca", "no existing path"), ("null", "nothing to train on")]
)
def test_a_faulty_value_is_not_also_said_to_be_absent(word, what):
    with pytest.raises(ConfigError) as error:
        TuneArgumentParser(NeedsRows).parse_args([f"dataset={word}"])
    assert what in error.value.what  # one fault, not several
