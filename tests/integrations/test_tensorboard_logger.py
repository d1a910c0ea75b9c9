"""TensorBoard shows the figures that were logged: read back by TensorBoard itself."""

import pytest
from torchtune.config import build
from torchtune.training import Progress

events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def scalars(folder, name):
    reader = events.EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in reader.Scalars(name)]


def logged(folder, steps):
    logger = build("metric_logger", "tensorboard", output_dir=str(folder))
    logger.log_config({"batch_size": 4, "optimizer": {"_component_": "adamw"}})
    for step in steps:
        logger.log({"loss": 8.0 / step, "lr": 1e-4}, Progress(step=step))
    logger.close()


def test_every_figure_is_a_curve_over_steps(tmp_path):
    logged(tmp_path, [1, 2, 4])
    assert scalars(tmp_path / "tensorboard", "loss") == [(1, 8.0), (2, 4.0), (4, 2.0)]


def test_the_configuration_is_shown_as_text(tmp_path):
    logged(tmp_path, [1])
    reader = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    text = reader.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"batch_size": 4' in text


def test_a_resumed_run_hides_the_steps_that_were_lost(tmp_path):
    logged(tmp_path, [1, 2, 4, 8])
    logged(tmp_path, [4, 5])  # the kill came after 8, the checkpoint was that of 2
    assert [step for step, _ in scalars(tmp_path / "tensorboard", "loss")] == [1, 2, 4, 5]


def test_the_folder_can_be_named(tmp_path):
    component = {"_component_": "tensorboard", "log_dir": str(tmp_path / "events")}
    logger = build("metric_logger", component, output_dir=str(tmp_path / "run"))
    logger.log({"loss": 1.0}, Progress(step=1))
    logger.close()
    assert scalars(tmp_path / "events", "loss") == [(1, 1.0)]
