"""The shipped JSON Schemas are those of today's Params and components."""

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from torchtune.config import validate
from torchtune.config.reader import read_text
from torchtune_recipes import catalog

ROOT = Path(__file__).resolve().parents[2]


if not entry_points(group="torchtune.components"):
    reason = "needs torchtune-integrations: the schemas name its components"
    pytest.skip(reason, allow_module_level=True)


def test_the_schemas_are_current():
    command = [sys.executable, str(ROOT / "ci" / "schemas.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("evaluate: {tasks: [arc_easy], every_n_steps: 10}", True),
        ("evaluate: {_component_: lm_eval, tasks: [arc_easy]}", True),
        ("evaluate: {tsks: [arc_easy]}", False),
        ("metric_logger: wandb", True),
        ("metric_logger: [wandb, {_component_: tensorboard}]", True),
        ("metric_logger: [wandbb]", False),
        ("metric_logger: {_component_: wandb, projct: mine}", False),
    ],
)
def test_components_of_plug_ins_get_the_same_verdict_from_both(text, right, tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    recipe = catalog.find("sft", kind="recipe").path
    (tmp_path / "my.yaml").write_text(text)
    faults, _ = validate(recipe, tmp_path / "my.yaml", ["dataset=x.jsonl", "checkpoint=x"])
    schema = json.loads((recipe.parents[1] / "schemas/sft.json").read_text(encoding="utf-8"))
    valid = jsonschema.Draft7Validator(schema).is_valid(read_text(text, "my.yaml")[0].plain())
    assert (valid, faults == []) == (right, right)
