"""Weights & Biases gets the figures that were logged: read back from its offline file."""

import json
import struct

import pytest
from torchtune.config import build
from torchtune.training import Progress

wandb = pytest.importorskip("wandb")
Record = pytest.importorskip("wandb.proto.wandb_internal_pb2").Record


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")


def logged(folder, steps):
    component = {"_component_": "wandb", "project": "tests", "mode": "offline"}
    logger = build("metric_logger", component, output_dir=str(folder))
    logger.log_config({"batch_size": 4})
    for step in steps:
        logger.log({"loss": 8.0 / step}, Progress(step=step, epoch=1))
    logger.close()
    wandb.teardown()  # waits for the process that writes the file, as leaving Python does


def payloads(data):
    """Yield the records of a LevelDB log, the format of wandb's offline files, after its header."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # no record begins in the last bytes of a block
            place += 32768 - place % 32768
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


def records(folder):
    """Yield what wandb keeps of an offline run, in order."""
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for payload in payloads(file.read_bytes()):
            record = Record()
            record.ParseFromString(payload)
            yield record


def history(folder):
    for record in records(folder):
        items = record.history.item
        row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
        if row:
            yield row


def test_every_step_is_a_row_of_the_history(tmp_path):
    logged(tmp_path, [1, 2, 4])
    rows = [(row["_step"], row["loss"], row["epoch"]) for row in history(tmp_path)]
    assert rows == [(1, 8.0, 1), (2, 4.0, 1), (4, 2.0, 1)]


def test_a_resumed_run_is_the_same_run(tmp_path):
    logged(tmp_path, [1])
    logged(tmp_path, [2])
    ids = {record.run.run_id for record in records(tmp_path) if record.HasField("run")}
    assert len(ids) == 1


def test_the_configuration_is_that_of_the_run(tmp_path):
    logged(tmp_path, [1])
    updates = [update for record in records(tmp_path) for update in record.config.update]
    assert ("batch_size", "4") in {(update.key, update.value_json) for update in updates}
