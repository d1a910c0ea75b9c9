"""A key that takes one component or several: names, mappings, files and lines, what is written."""

from dataclasses import dataclass, field

import pytest
import yaml
from torchtune.config import Component, TuneArgumentParser, checks, resolved_yaml, validate
from torchtune.errors import TuneError


@dataclass
class Params:
    """A run with listeners, of which `optimizer` classes stand in for any kind."""

    optimizer: Component | list[Component] | None = None  # one or several
    loss: Component | None = None  # one alone
    texts: list[str] = field(default_factory=list)  # plain ones
    names: list[str] | None = None  # keys

    def __post_init__(self) -> None:
        with checks(self) as check:
            check.names_keys("names")


def parse(*words: str) -> Params:
    return TuneArgumentParser(Params).parse_args(words)


@pytest.fixture
def faults(tmp_path):
    def faults(text: str, *words: str) -> list[TuneError]:
        file = tmp_path / "run.yaml"
        file.write_text(text, encoding="utf-8")
        return validate(Params, file, words)[0]

    return faults


def test_one_component_stays_one():
    assert parse("optimizer=sgd", "optimizer.lr=0.5").optimizer == {"_component_": "sgd", "lr": 0.5}


def test_a_list_holds_names_and_mappings():
    found = parse("optimizer=[sgd, {_component_: adamw, lr: 1e-3}]").optimizer
    assert found == [{"_component_": "sgd"}, {"_component_": "adamw", "lr": 1e-3}]


def test_a_list_is_written_as_it_is_read_again(tmp_path):
    params = parse("optimizer=[sgd, {_component_: adamw, lr: 1e-3}]")
    file = tmp_path / "config.yaml"
    file.write_text(resolved_yaml(params), encoding="utf-8")
    again = parse("--config", str(file))
    assert again.optimizer[1]["lr"] == 1e-3
    assert yaml.safe_load(file.read_text())["optimizer"][0]["momentum"] == 0.0
    assert resolved_yaml(again) == file.read_text()


def test_an_empty_list_and_null_are_none_at_all():
    assert parse("optimizer=[]").optimizer == []
    assert parse("optimizer=null").optimizer is None


@pytest.mark.parametrize(
    ("text", "key", "line", "what"),
    [
        ("optimizer:\n  - sgd\n  - _component_: adamw\n    lrr: 1\n", "optimizer[1].lrr", 4, "lrr"),
        ("optimizer:\n  - sgd\n  - admw\n", "optimizer[1]", 3, "adamw"),
        ("optimizer:\n  - sgd\n  - {lr: 1}\n", "optimizer[1]", 3, "a list of components or null"),
        ("optimizer: [sgd, null]\n", "optimizer[1]", 1, "found None"),
        ("loss: [linear_cross_entropy]\n", "loss", 1, "the name of a component or null"),
    ],
)
def test_a_fault_in_a_list_has_its_item_and_line(faults, text, key, line, what):
    (fault,) = faults(text)
    assert fault.where.startswith(f"{key}, ")
    assert fault.where.endswith(f":{line}")
    assert what in str(fault)


def test_all_faults_of_a_list_come_together(faults):
    found = faults("optimizer: [admw, {_component_: sgd, lrr: 1}]\n", "loss=[a]")
    assert [fault.where.split(",")[0] for fault in found] == [
        "optimizer[0]",
        "optimizer[1].lrr",
        "loss",
    ]


def test_an_argument_of_an_item_is_not_set_from_outside(faults):
    (fault,) = faults("optimizer: [sgd]\n", "optimizer.lr=1")
    assert fault.code == "E-CONFIG-KEY"
    assert fault.exit_code == 2


def test_the_flag_of_a_list_may_stand_several_times():
    assert parse("--texts", "Hello, you", "--texts", "7").texts == ["Hello, you", "7"]
    assert parse("texts=[a]", "--texts=b", "--texts", "[c, d]").texts == ["a", "b", "c", "d"]
    assert parse("--texts", "a", "texts=[b]").texts == ["b"]


def test_a_list_of_keys_names_keys_of_the_params():
    assert parse("--names", "loss,optimizer.lr").names == ["loss,optimizer.lr"]
    with pytest.raises(TuneError, match="there is no key 'los'") as caught:
        parse("--names", "optimizer,los")
    assert caught.value.do == "did you mean 'loss'?"
