"""Weights & Biases gets the figures that were logged: read back from its offline file."""

import json

import pytest
from torchtune.config import build
from torchtune.training import Progress

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")


def logged(folder, steps, done=0, **options):
    component = {"_component_": "wandb", "project": "tests", "mode": "offline", **options}
    logger = build("metric_logger", component, output_dir=str(folder), progress=Progress(step=done))
    logger.log_config({"batch_size": 4})
    for step in steps:
        logger.log({"loss": 8.0 / step}, Progress(step=step, epoch=1))
    logger.close()
    wandb.teardown()  # waits for the process that writes the file, as leaving Python does


def history(records):
    for record in records:
        items = record.history.item
        row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
        if row:
            yield row


def test_every_step_is_a_row_of_the_history(tmp_path, wandb_records):
    logged(tmp_path, [1, 2, 4])
    rows = [(row["_step"], row["loss"], row["epoch"]) for row in history(wandb_records(tmp_path))]
    assert rows == [(1, 8.0, 1), (2, 4.0, 1), (4, 2.0, 1)]


def test_a_resumed_run_is_the_same_run_and_a_fresh_one_another(tmp_path, wandb_records):
    logged(tmp_path, [1])
    logged(tmp_path, [1, 2], done=1)
    logged(tmp_path, [1])
    records = [record for record in wandb_records(tmp_path) if record.HasField("run")]
    first, resumed, fresh = dict.fromkeys(
        (r.run.run_id, r.run.start_time.ToNanoseconds()) for r in records
    )
    assert first[0] == resumed[0] != fresh[0]
    assert [row["_step"] for row in history(wandb_records(tmp_path))] == [1, 2, 1]


def test_the_configuration_is_that_of_the_run(tmp_path, wandb_records):
    logged(tmp_path, [1])
    updates = [update for record in wandb_records(tmp_path) for update in record.config.update]
    assert ("batch_size", "4") in {(update.key, update.value_json) for update in updates}


def test_the_command_line_and_the_terminal_are_not_sent(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tune", "api_key=SECRETARGUMENT"])
    monkeypatch.setenv("WANDB_API_KEY", "SECRETKEY".ljust(40, "0"))
    monkeypatch.setenv("HF_TOKEN", "hf_SECRETTOKEN")
    print("SECRETTEXT")
    logged(tmp_path, [1])
    kept = [path.read_bytes() for path in (tmp_path / "wandb").rglob("*") if path.is_file()]
    assert kept
    assert not any(b"SECRET" in text for text in kept)


def test_files_are_sent_when_asked_for(tmp_path, wandb_records):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    logged(tmp_path, [1], log_files=True)
    sent = [f.path for record in wandb_records(tmp_path) for f in record.files.files]
    assert "metrics.jsonl" in sent
    (copy,) = tmp_path.glob("wandb/offline-run-*/files/metrics.jsonl")
    assert copy.read_text() == "{}\n"
