"""A run and its resume as three services show them, each read back by the service's own reader."""

import json

import pytest

pytest.importorskip("tensorboard")
pytest.importorskip("wandb")
mlflow = pytest.importorskip("mlflow")

LOGGERS = (
    "metric_logger=[stdout, {_component_: tensorboard, log_files: true},"
    " {_component_: wandb, mode: offline, log_files: true, log_checkpoint: true},"
    " {_component_: mlflow, log_files: true, log_checkpoint: true}]"
)


@pytest.fixture(scope="module")
def resumed(sft):
    """Three steps and, from the checkpoint of the second, two more; what the second start said."""
    quiet = {"WANDB_SILENT": "true"}
    first = sft("max_steps=3", "save_every_n_steps=2", LOGGERS, **quiet)
    assert first.returncode == 0, first.stderr
    again = sft("max_steps=4", "resume_from_checkpoint=run/step_000002", LOGGERS, **quiet)
    assert again.returncode == 0, again.stderr
    return sft.run, again


@pytest.fixture(scope="module")
def losses(resumed):
    lines = (resumed[0] / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line["loss"] for line in map(json.loads, lines)}


def test_stdout_goes_on_where_the_run_does(resumed, losses):
    lines = resumed[1].stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 3", "step 4"]
    assert f"loss {losses[4]:.4f}" in lines[1]
    assert "warning" not in resumed[1].stderr


def test_tensorboard_has_each_step_once(resumed, losses):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(resumed[0] / "tensorboard")).Reload()
    seen = {event.step: event.value for event in reader.Scalars("loss")}
    assert len(reader.Scalars("loss")) == 4
    assert seen == pytest.approx(losses)
    assert [image.step for image in reader.Images("loss")] == [4]  # that of step 3 was undone


def test_wandb_gets_the_losses_the_config_and_the_files(resumed, losses, wandb_records):
    records = wandb_records(resumed[0])
    rows = [{i.nested_key[0] if i.nested_key else i.key: json.loads(i.value_json) for i in
             record.history.item} for record in records if record.history.item]  # fmt: skip
    assert {row["_step"]: row["loss"] for row in rows} == losses
    assert [row["_step"] for row in rows] == [1, 2, 3, 4]
    assert len({record.run.run_id for record in records if record.HasField("run")}) == 1
    config = {u.key: u.value_json for record in records for u in record.config.update}
    assert json.loads(config["max_steps"]) == 4
    sent = {f.path for record in records for f in record.files.files}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "loss.png"} <= sent
    artifacts = [record.request.log_artifact.artifact for record in records]
    artifacts += [record.artifact for record in records if record.HasField("artifact")]
    names = {entry.path for artifact in artifacts for entry in artifact.manifest.contents}
    assert "model.safetensors" in names
    assert not any("optimizer" in name for name in names)


def test_mlflow_has_each_step_once_the_config_and_the_files(resumed, losses):
    client = mlflow.MlflowClient(f"sqlite:///{resumed[0]}/mlruns/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("torchtune").experiment_id])
    points = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in points] == sorted(losses.items())
    assert run.data.params["optimizer._component_"] == "adamw"
    assert run.data.tags["resumed.max_steps"] == "4"
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {"config.yaml", "environment.json", "metrics.jsonl", "loss.png", "checkpoint"}
    model = {file.path for file in client.list_artifacts(run.info.run_id, "checkpoint")}
    assert {"checkpoint/config.json", "checkpoint/model.safetensors"} <= model
    assert "checkpoint/training_state" not in model
