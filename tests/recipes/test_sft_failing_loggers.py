"""A run goes on when loggers fail: of the user's own, wherever they do, and without a network."""

import json

import pytest
from torchtune.testing import tiny_checkpoint

FAILING = '''
"""Loggers that lose their connection."""

class Failing:
    def __init__(self, at: str) -> None:
        self.at = at
        self.reach("init")

    def reach(self, method):
        if method == self.at:
            raise ConnectionError(f"no route in {method}")

    def log_config(self, config):
        self.reach("log_config")

    def log(self, metrics, progress):
        self.reach("log")

    def close(self):
        self.reach("close")
'''


@pytest.fixture
def sft(tune, tmp_path):
    """Run three steps in an empty folder with a package `my_loggers` that can be trusted."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "my_loggers.py").write_text(FAILING, encoding="utf-8")
    tiny_checkpoint(tmp_path / "model")
    rows = [{"instruction": f"Repeat: {n}", "output": str(n)} for n in range(24)]
    (tmp_path / "my.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    def sft(*words, **environment):
        given = [f"--checkpoint={tmp_path}/model", f"--dataset={tmp_path}/my.jsonl"]
        given += ["dtype=fp32", "max_steps=3", "--output-dir=run"]
        path = {"PYTHONPATH": str(tmp_path / "site")}
        return tune("run", "sft", *given, *words, **path, **environment)

    return sft


def test_a_run_goes_on_without_loggers_that_fail(sft, tmp_path):
    methods = ["init", "log_config", "log", "close"]
    failing = ", ".join(f"{{_component_: my_loggers.Failing, at: {m}}}" for m in methods)
    done = sft("--trust=my_loggers", f"metric_logger=[{failing}, stdout]")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the run goes on without it") == 4
    assert all(done.stderr.count(f"no route in {method}\n") == 1 for method in methods)
    assert len(done.stdout.splitlines()) == 3
    assert len((tmp_path / "here/run/metrics.jsonl").read_text().splitlines()) == 3


def test_an_argument_that_a_logger_has_not_is_a_fault_before_anything_is_loaded(sft):
    done = sft("metric_logger=[stdout, {_component_: jsonl, fille: x}]")
    assert done.returncode == 2
    assert "no argument 'fille'" in done.stderr
    assert "metric_logger[1].fille" in done.stderr
