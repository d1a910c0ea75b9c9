"""The model card, read by the hub's own reader and compared with the files of the run."""

import getpass
import hashlib
import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from torchtune.checkpoint import weights_digest
from torchtune.testing import tiny_checkpoint
from torchtune_integrations.hub import prepare


def card_of(checkpoint: Path, **how: object) -> ModelCard:
    return ModelCard(prepare(checkpoint, "me/tuned", **how).card)


def folded_config(card: ModelCard) -> dict[str, object]:
    return yaml.safe_load(re.search(r"````yaml\n(.*?)````", card.content, re.S)[1])


@pytest.mark.parametrize(
    ("which", "relation", "library"),
    [("lora", "adapter", "peft"), ("full", "finetune", "transformers")],
)
def test_the_hub_reads_the_head(runs, which, relation, library):
    head = card_of(getattr(runs, which)).data
    assert (head.base_model, head.license, head.library_name) == (
        "acme/llama-tiny",
        "apache-2.0",
        library,
    )
    assert (head.base_model_relation, head.pipeline_tag) == (relation, "text-generation")
    assert "torchtune" in head.tags


def test_figures_are_those_of_the_metrics_and_the_data_those_of_the_file(runs):
    text = card_of(runs.lora).text
    lines = [json.loads(line) for line in (runs.lora / "metrics.jsonl").read_text().splitlines()]
    assert f"| training loss, last step | {lines[-1]['loss']:.4f} |" in text
    assert f"| validation loss, last | {lines[-1]['val_loss']:.4f} |" in text
    digest = hashlib.sha256(runs.rows.read_bytes()).hexdigest()
    assert f"| `{runs.rows.name}` | 24 | `{digest}` |" in text
    assert "![The loss over the run's steps](loss.png)" in text


def test_an_earlier_step_shows_what_was_known_then(runs):
    text = card_of(runs.lora / "step_000002").text
    second = json.loads((runs.lora / "metrics.jsonl").read_text().splitlines()[1])
    assert f"| training loss, last step | {second['loss']:.4f} |" in text
    assert "- optimizer steps: 2\n" in text


def test_a_step_folder_and_its_run_give_the_same_card(runs):
    assert card_of(runs.lora).content == card_of(runs.lora / "step_000004").content
    assert card_of(runs.lora).content == card_of(runs.lora / "latest").content


def test_the_config_is_the_runs_own_but_for_places(runs):
    ours = folded_config(card_of(runs.full))
    theirs = yaml.safe_load((runs.full / "config.yaml").read_text())
    assert (ours.pop("output_dir"), ours.pop("checkpoint")) == ("full", "llama-tiny")
    assert (ours["dataset"].pop("source"), theirs["dataset"].pop("source")) == (
        runs.rows.name,
        str(runs.rows),
    )
    assert ours == {key: theirs[key] for key in ours}


@pytest.mark.parametrize("which", ["lora", "full"])
def test_nothing_tells_of_this_machine(runs, which):
    publication = prepare(getattr(runs, which), "me/tuned")
    for name, content in {**publication.files, "README.md": publication.card.encode()}.items():
        data = content if isinstance(content, bytes) else content.read_bytes()
        for private in (str(runs.base.parents[1]), "alice", getpass.getuser() + "/"):
            assert private.encode() not in data, name


def test_keys_under_telling_names_stay_out_of_the_config(runs, own_copy):
    run = own_copy(runs.lora)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["metric_logger"] = {"_component_": "mlflow", "api_key": "abc", "eos_token": "</s>"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    shown = folded_config(card_of(run))["metric_logger"]
    assert shown == {"_component_": "mlflow", "api_key": "(left out)", "eos_token": "</s>"}


def test_datasets_of_the_hub_are_named_in_the_head(runs, own_copy):
    run = own_copy(runs.lora)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(runs.rows), "tatsu-lab/alpaca"))
    card = card_of(run)
    assert card.data.datasets == ["tatsu-lab/alpaca"]
    assert "[tatsu-lab/alpaca](https://huggingface.co/datasets/tatsu-lab/alpaca)" in card.text


def test_a_local_file_that_looks_like_a_name_on_the_hub_is_none(runs, own_copy):
    run = own_copy(runs.lora)
    for name in ("config.yaml", "environment.json"):
        said = (run / name).read_text()
        (run / name).write_text(said.replace(str(runs.rows), "data/rows.jsonl"))
    card = card_of(run)
    assert card.data.datasets is None
    assert "| `data/rows.jsonl` |  |" in card.text


def test_scores_of_the_run_stand_with_their_standard_errors(runs, own_copy):
    run = own_copy(runs.lora)
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 4, "arc_easy/acc": 0.51234, "arc_easy/acc_stderr": 0.01}\n{"cut')
    assert "| arc_easy/acc | 0.5123 ± 0.0100 |" in card_of(run).text


def test_a_model_of_no_run_asks_its_author_how_it_was_made(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    card = card_of(folder, licence="mit", base_model="acme/other")
    assert (card.data.base_model, card.data.license) == ("acme/other", "mit")
    assert "**To be written by the author:** how was it made, and from which data?" in card.text


def test_a_run_that_began_from_another_names_the_base_of_both(runs, own_copy):
    second = own_copy(runs.full)
    record = json.loads((second / "environment.json").read_text())
    record["base"] = {"path": str(runs.full), "sha256": weights_digest(runs.full / "latest")}
    (second / "environment.json").write_text(json.dumps(record))
    head = card_of(second).data
    assert (head.base_model, head.license) == ("acme/llama-tiny", "apache-2.0")


def test_another_model_that_lies_where_the_base_was_says_nothing_of_it(runs, own_copy):
    run = own_copy(runs.full)
    record = json.loads((run / "environment.json").read_text())
    record["base"]["sha256"] = "0" * 64
    (run / "environment.json").write_text(json.dumps(record))
    head = card_of(run).data
    assert (head.base_model, head.license) == (None, None)
