"""`json_schema`: jsonschema's verdict on a config is that of `validate`, key by key."""

import inspect
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from torchtune import training
from torchtune.config import MISSING, Component, json_schema, validate
from torchtune.config.reader import read_text
from torchtune.config.static_signature import read_docstring
from torchtune.errors import ConfigError
from torchtune.models import llama

jsonschema = pytest.importorskip("jsonschema")


@dataclass
class Params:
    """Keys of every kind."""

    # --- numbers
    count: int = 8  # rows at once
    rate: float = 1e-4
    on: bool = False
    limit: int | None = None
    # --- text
    must: str = MISSING
    name: str = "x"
    place: Path | None = None
    kind: Literal["a", "b"] = "a"  # which one
    either: bool | str | None = None
    # --- several
    names: list[str] = field(default_factory=list)
    pair: tuple[int, float] = (1, 2.0)
    table: dict[str, int] = field(default_factory=dict)
    # --- components
    optimizer: Component = "adamw"
    lr_scheduler: Component | None = None
    dataset: Component | None = None
    held_out: Annotated[Component | None, "dataset"] = None
    losses: list[Annotated[Component, "loss"]] = field(default_factory=list)


RIGHT = [
    *("count: 3", "count: 3.0", "count: ${limit}\nlimit: 2", "rate: 1", "rate: 2e-5", "on: true"),
    *("limit: null", "limit: 4", "name: 007", "name: true", "place: ./x", "kind: b"),
    *("either: auto", "either: false", "either: null", "names: [a, 1]", "names: []"),
    *("pair: [1, 2.5]", "table: {a: 1}", "recipe: any"),
    *("optimizer: sgd", "optimizer: torch.optim.SGD", "optimizer: {lr: 1}"),
    *("optimizer: {_component_: sgd, lr: 1e-4, nesterov: true}", "lr_scheduler: null"),
    *("optimizer: {_component_: torch.optim.SGD, momentum: 0.9}", "lr_scheduler: cosine"),
    *("lr_scheduler: {_component_: cosine, num_warmup_steps: 3}", "dataset: ./my.jsonl"),
    *("dataset: owner/name", "dataset: alpaca"),
    *("held_out: {_component_: rows, source: x.csv}", "losses: [linear_cross_entropy]"),
]
WRONG = [
    *("cuont: 3", "count: many", "count: 2.5", "count: null", "count: [1]", "rate: fast"),
    *("on: 1", "on: maybe", "limit: no", "name: null", "name: [a]", "kind: c", "kind: A"),
    *("either: [a]", "names: a", "pair: [1]", "pair: [1, 2, 3]", "pair: [1, x]"),
    *("table: {a: b}", "table: [1]", "optimizer: adamv", "optimizer: {_component_: adamv}"),
    *("optimizer: {_component_: adamw, learning_rate: 1}", "optimizer: {larning: 1}"),
    *("optimizer: {_component_: adamw, lr: high}", "optimizer: null", "optimizer: 3"),
    *("lr_scheduler: {num_warmup_steps: 3}", "held_out: {_component_: alpaca, sorce: x}"),
    *("held_out: {_component_: ./x.csv}", "losses: [linear_cross_entropi]"),
]


def verdicts(text, tmp_path):
    """Return what jsonschema and we say of a config."""
    node, faults = read_text(text, "my.yaml")
    assert faults == []
    schema = json.loads(json.dumps(json_schema(Params)))
    (tmp_path / "my.yaml").write_text(text)
    ours, _ = validate(Params, tmp_path / "my.yaml", ["must=x"])
    return jsonschema.Draft7Validator(schema).is_valid(node.plain()), ours == []


@pytest.mark.parametrize("text", RIGHT)
def test_what_we_take_is_valid(text, tmp_path):
    assert verdicts(text, tmp_path) == (True, True)


@pytest.mark.parametrize("text", WRONG)
def test_what_we_refuse_is_not(text, tmp_path):
    assert verdicts(text, tmp_path) == (False, False)


def test_the_schema_is_one_itself():
    jsonschema.Draft7Validator.check_schema(json_schema(Params, recipe="mine"))


def test_an_editor_shows_the_comment_the_default_and_the_choices():
    keys = json_schema(Params)["properties"]
    assert (keys["count"]["description"], keys["count"]["default"]) == ("rows at once", 8)
    assert {"enum": ["a", "b"]} in keys["kind"]["anyOf"]
    assert "default" not in keys["must"]
    assert {"adamw", "sgd"} <= set(keys["optimizer"]["anyOf"][0]["enum"])


def test_arguments_are_described_by_their_docstring():
    """Read from the source: through `from` imports for adamw, through `partial` for a model size."""
    forms = json_schema(Params)["properties"]["optimizer"]["anyOf"]
    adamw = next(
        f for f in forms if f.get("properties", {}).get("_component_") == {"enum": ["adamw"]}
    )
    said = " ".join(inspect.getdoc(training.adamw).split())
    for name in ("betas", "eps", "weight_decay"):
        assert f"{name}: {adamw['properties'][name]['description']}" in said
    doc = read_docstring("torchtune.models.llama:llama3_2_1b")
    assert doc == inspect.getdoc(llama.llama)


def test_a_config_may_name_only_the_recipe_that_the_schema_is_of():
    schema = json_schema(Params, recipe="mine")
    assert jsonschema.Draft7Validator(schema).is_valid({"recipe": "mine"})
    assert not jsonschema.Draft7Validator(schema).is_valid({"recipe": "other"})


def test_params_that_are_no_dataclass_are_refused():
    with pytest.raises(ConfigError, match="E-CONFIG-PARAMS"):
        json_schema(dict)
