"""MLflow gets the figures that were logged: read back from its store by its own client."""

import math
import subprocess
import sys

import pytest
from torchtune.config import build
from torchtune.errors import ConfigError
from torchtune.training import Progress

mlflow = pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> str:
    """One database for all tests, as making one takes seconds; each has its own experiment."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(autouse=True)
def here(database, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.chdir(tmp_path)  # where MLflow puts files that a database in SQLite cannot hold


def logged(folder, steps, done=0, config=None, **options):
    component = {"_component_": "mlflow", "experiment": folder.name, **options}
    progress = Progress(step=done)
    logger = build("metric_logger", component, output_dir=str(folder), progress=progress)
    logger.log_config(config or {"batch_size": 4})
    for step in steps:
        logger.log({"loss": 8.0 / step, "arc_easy/acc,none": 0.5}, Progress(step=step, epoch=1))
    logger.close()


def runs(folder, **where):
    client = mlflow.MlflowClient(**where)
    number = client.get_experiment_by_name(folder.name).experiment_id
    return client, client.search_runs([number], order_by=["start_time ASC"])


def curve(folder, name="loss"):
    client, (run,) = runs(folder)
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]


def test_every_step_is_a_point_of_the_curve(tmp_path):
    logged(tmp_path, [1, 2, 4])
    assert curve(tmp_path) == [(1, 8.0), (2, 4.0), (4, 2.0)]
    assert curve(tmp_path, "arc_easy/acc_none") == [(1, 0.5), (2, 0.5), (4, 0.5)]
    _, (run,) = runs(tmp_path)
    assert run.info.status == "FINISHED"


def test_a_resumed_run_goes_on_without_a_step_twice(tmp_path):
    logged(tmp_path, [1, 2, 3])
    logged(tmp_path, [2, 3, 4], done=1)  # the kill came after 3, the checkpoint was that of 1
    assert [step for step, _ in curve(tmp_path)] == [1, 2, 3, 4]


def test_a_run_that_starts_again_is_another_run(tmp_path):
    logged(tmp_path, [1])
    logged(tmp_path, [1], run_name="again")
    _, found = runs(tmp_path)
    assert [run.info.run_name == "again" for run in found] == [False, True]


def test_the_configuration_is_flat_and_within_the_limits(tmp_path):
    config = {
        "optimizer": {"_component_": "adamw", "betas": [0.9, 0.95], "empty": {}},
        "metric_logger": [{"_component_": "stdout"}, {"_component_": "mlflow"}],
        "prompt": "x" * 7000,
        "k" * 300: 1,
        **{f"key{n}": n for n in range(150)},  # a batch of MLflow's holds 100
    }
    logged(tmp_path, [1], config=config)
    _, (run,) = runs(tmp_path)
    params = run.data.params
    assert params["optimizer._component_"] == "adamw"
    assert params["optimizer.betas"] == "[0.9, 0.95]"
    assert params["metric_logger.1._component_"] == "mlflow"
    assert len(params["prompt"]) == 6000
    assert params["k" * 250] == "1"
    assert params["key149"] == "149"


def test_what_changes_on_a_resume_is_a_tag(tmp_path):
    logged(tmp_path, [1], config={"max_steps": 1, "seed": 0})
    logged(tmp_path, [2], done=1, config={"max_steps": 2, "seed": 0})
    _, (run,) = runs(tmp_path)
    assert (run.data.params["max_steps"], run.data.tags["resumed.max_steps"]) == ("1", "2")
    assert "resumed.seed" not in run.data.tags


def test_a_loss_that_is_no_number_is_kept_so(tmp_path):
    component = {"_component_": "mlflow", "experiment": tmp_path.name}
    logger = build("metric_logger", component, output_dir=str(tmp_path))
    logger.log({"loss": math.nan}, Progress(step=1))
    logger.close()
    assert math.isnan(curve(tmp_path)[0][1])


def test_without_a_server_all_lies_in_the_folder_of_the_run(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    logged(tmp_path, [1], log_files=True)
    uri = f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    client, (run,) = runs(tmp_path, tracking_uri=uri)
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [1]
    (copy,) = (tmp_path / "mlruns" / "artifacts").rglob("metrics.jsonl")
    assert copy.read_text() == "{}\n"


def test_files_are_sent_when_asked_for(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    logged(tmp_path, [1], log_files=True)
    client, (run,) = runs(tmp_path)
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["metrics.jsonl"]


def test_a_run_that_breaks_off_is_marked_as_failed(tmp_path):
    component = {"_component_": "mlflow", "experiment": tmp_path.name}
    code = "from torchtune.config import build\n"
    code += f"build('metric_logger', {component!r}, output_dir={str(tmp_path)!r})\n"
    code += "raise SystemExit(1)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 1
    _, (run,) = runs(tmp_path)
    assert run.info.status == "FAILED"


def test_a_password_in_the_config_is_refused(tmp_path):
    component = {"_component_": "mlflow", "tracking_uri": "https://me:pw@mlflow.example"}
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD"):
        build("metric_logger", component, output_dir=str(tmp_path))
