"""Loggers: what is printed, what a failing one does to a run, and what never leaves the machine."""

import subprocess
import sys

import pytest
from torchtune import training
from torchtune.errors import ConfigError, MissingError
from torchtune.training import Progress

FIGURES = {"loss": 2.34567, "lr": 1e-5, "tokens_per_second": 12345.6, "arc_easy/acc": 0.25}


class Failing:
    """A logger whose connection is lost in one of its methods."""

    def __init__(self, at: str, calls: list[str]) -> None:
        self.at, self.calls = at, calls
        self.reach("init")

    def reach(self, method: str) -> None:
        self.calls.append(method)
        if method == self.at:
            raise ConnectionError(f"no route\nin {method}")

    def log_config(self, config):
        self.reach("log_config")

    def log(self, metrics, progress):
        self.reach("log")

    def close(self):
        self.reach("close")


def run(*loggers: training.Logger, steps: int = 3) -> None:
    log = training.RunLog(speaks=False)
    log.start(loggers, config={}, total=steps)
    for step in range(steps):
        log.log({"loss": 1.0}, Progress(step=step + 1))
    log.close()


def test_a_label_stays_apart_from_its_text_however_long(capsys):
    log = training.RunLog(speaks=True)
    log.say("dataset", "24 rows\n2 cut")
    log.say("dataset_second", "12 rows")
    assert capsys.readouterr().err == f"dataset    24 rows\n{'':11}2 cut\ndataset_second 12 rows\n"


def test_stdout_has_one_line_a_step_that_says_every_figure(capsys):
    run(training.StdoutLogger(), steps=2)
    training.StdoutLogger().log(FIGURES, Progress(step=3, epoch=1))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 1  epoch 0  loss 1.0000"
    assert lines[2] == (
        "step 3  epoch 1  loss 2.3457  lr 1e-05  tokens_per_second 12,346  arc_easy/acc 0.25"
    )


@pytest.mark.parametrize("method", ["init", "log_config", "log", "close"])
def test_a_logger_that_fails_is_left_out_with_one_warning(method, capsys):
    calls: list[str] = []
    whole = Failing("nowhere", [])
    run(training.GuardedLogger("mine", lambda: Failing(method, calls)), whole)
    said = capsys.readouterr().err
    assert said.count("'mine' failed, and the run goes on without it") == 1
    assert f"ConnectionError: no route in {method}" in said
    assert calls[-1] == method  # and nothing after it
    assert whole.calls == ["init", "log_config", "log", "log", "log", "close"]


def test_a_missing_package_and_a_wrong_argument_stop_the_run_before_it_begins(tmp_path):
    def lacking():
        import no_such_package  # noqa: F401

    with pytest.raises(MissingError, match="no_such_package"):
        training.GuardedLogger("mine", lacking)
    with pytest.raises(ConfigError, match="no argument 'fille'"):
        training.build_loggers({"_component_": "jsonl", "fille": "x"}, output_dir=tmp_path)


@pytest.mark.parametrize("named", [None, [], "jsonl", ["jsonl"], [{"_component_": "jsonl"}]])
def test_metrics_are_written_once_whatever_is_named(named, tmp_path):
    loggers = training.build_loggers(named, output_dir=tmp_path)
    run(*loggers)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_several_loggers_all_get_every_step(tmp_path, capsys):
    second = {"_component_": "jsonl", "file": str(tmp_path / "second.jsonl")}
    run(*training.build_loggers(["stdout", second], output_dir=tmp_path))
    assert (tmp_path / "second.jsonl").read_text() == (tmp_path / "metrics.jsonl").read_text()
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_logger_of_a_package_that_is_not_installed_says_how_to_get_it(name):
    code = f"""
import importlib.metadata
importlib.metadata.entry_points = lambda **_: []  # as without torchtune-integrations
from torchtune.config import locate
from torchtune.errors import report_errors
with report_errors():
    locate("metric_logger", "{name}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 3
    assert f"pip install 'torchtune-integrations[{name}]'" in done.stderr


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"api_key": "0123"}, {"api_key": "[hidden]"}),
        ({"a": [{"hub_password": "x", "b": 1}]}, {"a": [{"hub_password": "[hidden]", "b": 1}]}),
        ({"uri": "http://me:pw@host/x"}, {"uri": "http://[hidden]@host/x"}),
        ({"note": "use hf_abcdefghijklmnopqrst"}, {"note": "use [hidden]"}),
        ({"max_tokens": 5, "tokenizer": "auto"}, {"max_tokens": 5, "tokenizer": "auto"}),
        ({"api_key": None, "secret": 3}, {"api_key": None, "secret": 3}),
    ],
)
def test_secrets_of_a_config_reach_no_logger(value, shown):
    assert training.without_secrets(value) == shown
