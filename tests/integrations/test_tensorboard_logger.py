"""TensorBoard shows the figures that were logged: read back by TensorBoard itself."""

import pytest
from torchtune.config import build
from torchtune.training import Progress, plot_loss

events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def scalars(folder, name):
    reader = events.EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in reader.Scalars(name)]


def logged(folder, steps, done=0, **options):
    component = {"_component_": "tensorboard", **options}
    progress = Progress(step=done)
    logger = build("metric_logger", component, output_dir=str(folder), progress=progress)
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
    logged(tmp_path, [4, 5], done=2)  # the kill came after 8, the checkpoint was that of 2
    assert [step for step, _ in scalars(tmp_path / "tensorboard", "loss")] == [1, 2, 4, 5]


def test_a_run_that_starts_again_hides_the_one_before(tmp_path):
    logged(tmp_path, [1, 2, 3])  # killed before it saved anything
    logged(tmp_path, [1, 2])
    assert [step for step, _ in scalars(tmp_path / "tensorboard", "loss")] == [1, 2]


def test_a_killed_run_keeps_every_step(tmp_path):
    logger = build("metric_logger", "tensorboard", output_dir=str(tmp_path), progress=Progress())
    logger.log({"loss": 1.0}, Progress(step=1))
    assert scalars(tmp_path / "tensorboard", "loss") == [(1, 1.0)]  # not closed
    logger.close()


def test_files_are_shown_when_asked_for(tmp_path):
    plot_loss(
        write(tmp_path / "metrics.jsonl", '{"step": 1, "loss": 1.0}\n'), tmp_path / "loss.png"
    )
    write(tmp_path / "environment.json", '{"python": "3.11"}')
    logged(tmp_path, [1], log_files=True)
    reader = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert reader.Images("loss")[0].width == 960
    text = reader.Tensors("environment.json/text_summary")[0].tensor_proto.string_val[0]
    assert b'"python": "3.11"' in text


def test_the_folder_can_be_named(tmp_path):
    component = {"_component_": "tensorboard", "log_dir": str(tmp_path / "events")}
    logger = build("metric_logger", component, output_dir=str(tmp_path / "run"))
    logger.log({"loss": 1.0}, Progress(step=1))
    logger.close()
    assert scalars(tmp_path / "events", "loss") == [(1, 1.0)]
