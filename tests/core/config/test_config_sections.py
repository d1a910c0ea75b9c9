"""Sections: dataclasses inside Params, in YAML, on the command line, in help, schema and files."""

import json
import sys
from dataclasses import asdict, dataclass, field
from typing import Literal

import pytest
import yaml
from torchtune.config import (
    Component,
    Parallel,
    TuneArgumentParser,
    json_schema,
    read_params,
    resolved_yaml,
    suggest,
    validate,
)
from torchtune.errors import ConfigError, TuneError


@dataclass
class Inner:
    """A section in a section."""

    rate: float = 0.5  # how fast


@dataclass
class Saving:
    """A section with keys of several kinds."""

    every: int | None = None  # steps between saves
    kind: Literal["whole", "part"] = "whole"
    on: bool = True
    base: str = "x"  # where from
    inner: Inner = field(default_factory=Inner)


@dataclass
class Params:
    """Two sections, the second of them optional."""

    # --- environment
    parallel: Parallel = field(default_factory=Parallel)  # who does what
    saving: Saving = field(default_factory=lambda: Saving(every=7))
    more: Saving | None = None


RECIPE = """
from dataclasses import dataclass, field
import torch
from torchtune.config import Parallel, TuneArgumentParser

@dataclass
class Mine:
    deep: int = 3  # metres

@dataclass
class Params:
    parallel: Parallel = field(default_factory=Parallel)
    mine: Mine = field(default_factory=Mine)

TuneArgumentParser(Params)
"""


def parse(tmp_path, text, *words, params=Params):
    """Parse a YAML text and words."""
    (tmp_path / "run.yaml").write_text(text)
    return TuneArgumentParser(params).parse_args(["--config", str(tmp_path / "run.yaml"), *words])


@pytest.mark.parametrize(
    ("words", "path", "value"),
    [
        (["parallel.tensor=4"], "parallel.tensor", 4),
        (["--parallel.data-shard", "3"], "parallel.data_shard", 3),
        (["parallel={context: 8}"], "parallel.context", 8),
        (["saving.base=y"], "saving.every", 9),
        (["~saving.every"], "saving.every", 7),
        (["~saving"], "saving.every", 7),
        (["--no-saving.on"], "saving.on", False),
        (["--saving.on", "saving.on=false", "--saving.on"], "saving.on", True),
        (["saving.inner.rate=2"], "saving.inner.rate", 2.0),
        (["more.kind=part"], "more.kind", "part"),
        (["more.kind=part"], "more.every", None),
        (["more.kind=part", "~more"], "more", None),
        (["saving.base=${parallel.tensor}"], "saving.base", "2"),
    ],
)
def test_the_command_line_reaches_into_a_section_and_keeps_the_rest(tmp_path, words, path, value):
    found = parse(tmp_path, "parallel: {tensor: 2}\nsaving: {every: 9}\n", *words)
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value and type(found) is type(value)


def test_a_section_in_yaml_fills_part_of_it(tmp_path):
    found = parse(tmp_path, "parallel:\n  tensor: 2\n")
    assert found == Params(parallel=Parallel(tensor=2), saving=Saving(every=7))


def test_all_faults_of_sections_come_at_once_with_line_and_nearest_name(tmp_path):
    text = (
        "parallel:\n  tensr: 2\n  context: x\nsaving:\n  kind: prat\n  inner: {rat: 1}\nmore: 3\n"
    )
    with pytest.raises(TuneError) as caught:
        parse(tmp_path, text, "saving.evry=1", "parallel.tensor.x=1")
    said = {fault.where: str(fault) for fault in caught.value.faults}
    run = tmp_path / "run.yaml"
    assert said.keys() == {
        f"parallel.tensr, {run}:2",
        f"parallel.context, {run}:3",
        f"saving.kind, {run}:5",
        f"saving.inner.rat, {run}:6",
        f"more, {run}:7",
        "saving.evry, command line",
        "parallel.tensor, command line",
    }
    assert "did you mean 'tensor'?" in said[f"parallel.tensr, {run}:2"]
    assert "did you mean 'part'?" in said[f"saving.kind, {run}:5"]
    assert "a mapping of every, kind, on, base, inner or null" in said[f"more, {run}:7"]


def test_the_sections_own_checks_name_the_line_of_their_key(tmp_path):
    with pytest.raises(TuneError) as caught:
        parse(tmp_path, "parallel:\n  tensor: 0\n", "parallel.data_shard=-2")
    places = [fault.where for fault in caught.value.faults]
    assert places == [
        f"parallel.tensor, {tmp_path / 'run.yaml'}:2",
        "parallel.data_shard, command line",
    ]


def test_a_resolved_config_gives_the_same_params(tmp_path):
    params = parse(tmp_path, "parallel: {tensor: 2}\nmore: {inner: {rate: 3}}\n")
    text = resolved_yaml(params)
    assert parse(tmp_path, text) == params and yaml.safe_load(text) == asdict(params)


def test_help_lists_each_key_of_a_section_with_doc_and_default(capsys):
    with pytest.raises(SystemExit):
        TuneArgumentParser(Params).parse_args(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "parallel who does what:" in said
    assert "--saving.every VALUE steps between saves [an integer or null; default 7]" in said
    assert "--more.every VALUE steps between saves [an integer or null; default null]" in said
    assert "--saving.inner.rate VALUE how fast [a number; default 0.5]" in said


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("parallel: {tensor: 2}", True),
        ("parallel: {tensr: 2}", False),
        ("parallel: {tensor: x}", False),
        ("parallel: 3", False),
        ("parallel: null", False),
        ("more: null", True),
        ("saving: {inner: {rate: 1}, kind: part}", True),
        ("saving: {inner: {rate: fast}}", False),
    ],
)
def test_the_schema_says_of_a_section_what_validate_says(tmp_path, text, right):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(json.dumps(json_schema(Params)))
    (tmp_path / "my.yaml").write_text(text)
    faults, _ = validate(Params, tmp_path / "my.yaml")
    assert (faults == []) is right
    assert jsonschema.Draft7Validator(schema).is_valid(yaml.safe_load(text)) is right
    assert schema["properties"]["parallel"]["default"]["data_shard"] == -1


def test_a_shell_is_offered_the_keys_of_a_section():
    assert suggest(Params, ["parallel.da"]) == ["parallel.data_replicate=", "parallel.data_shard="]
    assert suggest(Params, ["--saving.inner.r"]) == ["--saving.inner.rate"]
    assert suggest(Params, ["saving.kind="]) == ["saving.kind=whole", "saving.kind=part"]


def test_a_recipe_file_with_sections_is_read_without_its_imports(tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE.replace("import torch\n", "import absent_module\n"))
    params = read_params(tmp_path / "recipe.py")
    made = TuneArgumentParser(params).parse_args(["mine.deep=4"])
    assert (made.mine.deep, made.parallel) == (4, Parallel())
    assert "absent_module" not in sys.modules


def test_a_file_that_a_section_names_is_looked_for(tmp_path):
    (tmp_path / "run.yaml").write_text("saving:\n  base: ./absent\n")
    _, notes = validate(Params, tmp_path / "run.yaml")
    assert [note.where for note in notes] == [f"saving.base, {tmp_path / 'run.yaml'}:2"]


def test_a_component_in_a_section_is_refused():
    @dataclass
    class Bad:
        optimizer: Component = "adamw"

    @dataclass
    class Holder:
        bad: Bad = field(default_factory=Bad)

    Holder.__annotations__["bad"] = Bad
    with pytest.raises(ConfigError, match="'bad' holds a component"):
        TuneArgumentParser(Holder).parse_args([])


SIZES = [
    ({}, 6, (1, 6, 1, 1)),
    ({"tensor": 2}, 6, (1, 3, 1, 2)),
    ({"data_replicate": 2, "context": 3}, 6, (2, 1, 3, 1)),
    ({"data_shard": 6}, 6, (1, 6, 1, 1)),
    ({"data_replicate": -1, "data_shard": 1}, 6, (6, 1, 1, 1)),
    ({"data_replicate": -1, "data_shard": 3, "tensor": 2}, 12, (2, 3, 1, 2)),
]


@pytest.mark.parametrize(("given", "processes", "sizes"), SIZES)
def test_the_sizes_multiply_to_the_number_of_processes(given, processes, sizes):
    assert tuple(Parallel(**given).sizes(processes).values()) == sizes


@pytest.mark.parametrize(
    ("given", "processes", "where", "do"),
    [
        ({"tensor": 3}, 4, "parallel.tensor", "parallel.tensor=1, 2 or 4, or start 3 processes"),
        ({"tensor": 2, "data_shard": 4}, 4, "parallel", "parallel.data_shard=-1"),
        ({"data_shard": 3}, 4, "parallel.data_shard", "parallel.data_shard=-1"),
        ({"context": 2}, 1, "parallel.context", "start 2 processes"),
        ({"data_replicate": 2, "tensor": 3}, 4, "parallel", "parallel.tensor=1 or 2"),
        ({"data_replicate": -1, "data_shard": 3}, 4, "parallel.data_shard", "start 3 processes"),
    ],
)
def test_another_product_is_refused_with_what_would_be_valid(given, processes, where, do):
    with pytest.raises(ConfigError, match="E-PARALLEL") as caught:
        Parallel(**given).sizes(processes)
    assert caught.value.where == where and do in caught.value.do
