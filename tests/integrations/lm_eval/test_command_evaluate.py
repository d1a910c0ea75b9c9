"""`tune evaluate`: its table and files, a comparison with a base, and what it says when misused."""

import argparse
import json
import os
import socket
import sys
from importlib.util import find_spec

import numpy
import pytest
from torchtune.errors import ConfigError, MissingError
from torchtune.testing import tiny_checkpoint
from torchtune_integrations.lm_eval import command


@pytest.fixture
def evaluate(task_folder, tmp_path, monkeypatch, capsys):
    """Run the command in a folder of its own; return its output and the files it wrote."""
    monkeypatch.chdir(tmp_path)

    def evaluate(*words):
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        where = ["--include-path", str(task_folder)]
        assert command.run(parser.parse_args([*where, *map(str, words)])) == 0
        said = capsys.readouterr()
        files = sorted((tmp_path / "evaluation").rglob("results_*.json"))
        return said.out, said.err, [json.loads(file.read_text()) for file in files]

    return evaluate


@pytest.fixture
def called(monkeypatch):
    """Addresses that somebody tried to reach; nobody comes through."""
    addresses = []

    def connect(_, address):
        addresses.append(address)
        raise OSError("there is no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    return addresses


def test_the_table_is_the_harness_own_and_no_network_is_asked(evaluate, story_model, called):
    from lm_eval.utils import make_table

    out, err, [results] = evaluate(
        "--checkpoint", story_model, "--tasks", "local_arc_easy,rolling", "--limit", "3"
    )
    assert called == []
    assert out.strip() == make_table(results).strip()
    assert results["config"]["limit"] == 3
    assert results["config"]["model_num_parameters"] == 260_032
    assert "publish it: tune push_to_hub --checkpoint" in err


def test_a_base_is_compared_item_by_item(evaluate, story_model, tmp_path):
    base = tiny_checkpoint(tmp_path / "base")
    out, _, _ = evaluate(
        *("--checkpoint", story_model, "--compare", base, "--log-samples"),
        *("--tasks", "local_arc_easy", "--limit", "30"),
    )
    tuned, old = (
        numpy.array([json.loads(line)["acc"] for line in file.read_text().splitlines()])
        for name in ("*stories260k", "*base")
        for file in tmp_path.glob(f"evaluation/{name}/samples_*.jsonl")
    )
    error = (tuned - old).std(ddof=1) / len(tuned) ** 0.5
    row = next(line for line in out.splitlines() if "|acc " in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2].startswith(f"{old.mean():.4f} ±")
    assert cells[3].startswith(f"{tuned.mean():.4f} ±")
    assert cells[4] == f"{tuned.mean() - old.mean():+.4f} ± {error:.4f}"


def test_tests_mean_tasks_and_a_model_is_found_by_name(evaluate, tmp_path):
    tiny_checkpoint(tmp_path / "models" / "mine")
    _, _, [results] = evaluate(
        "--model", "mine", "--tests", "local_arc_easy", "answers", "--limit", "2", "--dtype", "bf16"
    )
    assert sorted(results["results"]) == ["answers", "local_arc_easy"]
    assert results["config"]["model_dtype"] == "torch.bfloat16"


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["--checkpoint", "absent", "--tasks", "rolling"], MissingError, "E-CHECKPOINT-MISSING"),
        (["--tasks", "rolling", "--limit", "0"], ConfigError, "--limit is 0; it must be above 0"),
        (["--tasks", "rolling", "--include-path", "absent"], MissingError, "E-EVAL-PATH"),
        (["--tasks", "moved"], MissingError, "(?s)E-EVAL-DATA.*gone.jsonl.*current folder"),
        (["--tasks", "unsafe"], ConfigError, "(?s)E-EVAL-UNSAFE.*--confirm-run-unsafe-code"),
        (["--tasks", "pictures"], ConfigError, "E-EVAL-TASK.*more than text"),
        (["--tasks", "beams"], ConfigError, "E-EVAL-GENERATION.*num_beams"),
        (["--tasks", "long_answers"], ConfigError, "E-EVAL-LENGTH.*600 tokens"),
        (["--tasks", "answers", "--apply-chat-template"], MissingError, "E-CHAT-TEMPLATE"),
    ],
)
def test_what_is_wrong_is_said(evaluate, story_model, task_folder, words, error, said):
    answers = (task_folder / "answers.yaml").read_text()
    others = {
        "moved": answers.replace("texts.jsonl", "gone.jsonl"),
        "unsafe": answers + "unsafe_code: true\n",
        "pictures": answers + 'doc_to_image: "{{text}}"\n',
        "beams": answers.replace("max_gen_toks: 24", "num_beams: 4"),
        "long_answers": answers.replace("max_gen_toks: 24", "max_gen_toks: 600"),
    }
    for name, text in others.items():
        file = task_folder / f"{name}.yaml"
        file.write_text(text.replace("task: answers", f"task: {name}"))
    if "--checkpoint" not in words:
        words = ["--checkpoint", str(story_model), *words]
    with pytest.raises(error, match=said):
        evaluate(*words, "--limit", "1") if "--limit" not in words else evaluate(*words)


@pytest.mark.slow
def test_an_unknown_task_is_answered_with_the_nearest(evaluate, story_model):
    with pytest.raises(ConfigError, match=r"(?s)E-EVAL-TASK.*did you mean 'hellaswag'") as caught:
        evaluate("--checkpoint", story_model, "--tasks", "helaswag")
    assert caught.value.exit_code == 2


def test_without_the_harness_it_says_what_to_install(story_model, monkeypatch):
    for module in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args(["--checkpoint", str(story_model), "--tasks", "rolling"])
    with pytest.raises(MissingError, match=r"(?s)E-PACKAGE.*torchtune-integrations\[eval\]"):
        command.run(args)


@pytest.mark.skipif(find_spec("torchtune_recipes") is None, reason="needs torchtune-recipes")
def test_the_terminal_shows_our_lines_and_no_others(
    story_model, task_folder, tmp_path, warm_python
):
    words = ["evaluate", "--checkpoint", str(story_model), "--include-path", str(task_folder)]
    words += ["--tasks", "local_arc_easy", "--limit", "2"]
    there = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = warm_python.run("torchtune_recipes.cli.main", *words, cwd=tmp_path, env=there)
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0].split(" ")[0] for line in done.stderr.splitlines()] == [
        "evaluating",
        "results",
        "compare",
        "publish",
    ]
    assert all(line.startswith("|") for line in done.stdout.splitlines())
