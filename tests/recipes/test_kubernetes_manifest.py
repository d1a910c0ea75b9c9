"""The documentation's manifest against the types that Kubeflow Trainer publishes."""

from pathlib import Path

import pytest
import yaml
from torchtune.config import read_params, validate
from torchtune_recipes import catalog

MANIFEST = Path(__file__).resolve().parents[2] / "docs/kubernetes/sft.yaml"


@pytest.fixture
def runtime_and_job():
    return list(yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8")))


def test_every_field_is_known_to_the_trainer_and_of_its_type(runtime_and_job):
    models = pytest.importorskip(
        "kubeflow_trainer_api.models", reason="pip install kubeflow-trainer-api"
    )
    for document in runtime_and_job:
        kind = getattr(models, "TrainerV1alpha1" + document["kind"])
        assert kind.from_dict(document).to_dict() == document  # what it does not know is dropped


def test_the_run_of_the_manifest_has_no_fault(runtime_and_job):
    runtime, job = runtime_and_job
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    trainer = job["spec"]["trainer"]
    recipe = catalog.resolve_recipe(trainer["command"][-1])
    assert read_params(recipe)
    words = [
        f"--config={catalog.resolve_config(word[9:])}" if word.startswith("--config=") else word
        for word in trainer["args"]
    ]
    assert validate(recipe, None, words, here=False)[0] == []
