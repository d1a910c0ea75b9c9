"""The schema that each config names: it is there, of its recipe, and holds what the config says."""

import json
from pathlib import Path

import pytest
from torchtune.config import validate
from torchtune.config.reader import read_text
from torchtune_recipes import catalog

jsonschema = pytest.importorskip("jsonschema")
EXAMPLE = catalog.find("llama3_2/1b_lora", recipe="sft")


def named_schema(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    return (path.parent / first.partition("=")[2]).resolve()


def is_valid(text, schema):
    node, faults = read_text(text, "text")
    assert faults == []
    return schema.is_valid(node.plain())


@pytest.mark.parametrize("config", catalog.entries("config"), ids=lambda entry: entry.name)
def test_a_shipped_config_is_valid_by_the_schema_that_it_names(config):
    path = named_schema(config.path)
    assert path == Path(catalog.__file__).parent / f"schemas/{config.recipe}.json"
    schema = jsonschema.Draft7Validator(json.loads(path.read_text(encoding="utf-8")))
    schema.check_schema(schema.schema)
    assert is_valid(config.path.read_text(encoding="utf-8"), schema)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("batch_size: 2", "bath_size: 2"),
        ("batch_size: 2", "batch_size: two"),
        ("packed: true", "packed: 1"),
        ("packed: true", "packed: true\ndtype: fp64"),
        ("_component_: adamw", "_component_: adamv"),
        ("  rank: 16", "  rnk: 16"),
        ("  lr: 2e-4", "  lr: high"),
        ("dataset: alpaca_cleaned", "dataset: {_component_: alpaca, splt: train}"),
        ("packed: true", "packed: true\nrecipe: sftt"),
    ],
)
def test_a_fault_that_we_name_is_underlined_in_an_editor(old, new, tmp_path):
    schema = jsonschema.Draft7Validator(json.loads(named_schema(EXAMPLE.path).read_text()))
    right = EXAMPLE.path.read_text(encoding="utf-8")
    wrong = right.replace(old, new)
    assert wrong != right
    (tmp_path / "my.yaml").write_text(wrong)
    assert (is_valid(right, schema), is_valid(wrong, schema)) == (True, False)
    if "recipe:" not in new:  # that one is `choose_recipe`'s
        assert validate(catalog.resolve_recipe("sft"), tmp_path / "my.yaml")[0] != []
