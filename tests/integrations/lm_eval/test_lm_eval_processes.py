"""Several processes find what one finds, item by item, and one of them says it."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from torch.testing import assert_close
from torchtune.config import Parallel
from torchtune.distributed import World, join_world
from torchtune.testing import run_distributed
from torchtune_integrations.lm_eval.evaluation import Settings, evaluate_checkpoint
from torchtune_integrations.lm_eval.tasks import load_tasks

TASKS = ["local_arc_easy", "rolling", "drawn"]
SPREADS = {
    "whole on each": {"data_replicate": -1, "data_shard": 1},
    "sharded": {},
    "cut by tensor": {"data_shard": 1, "tensor": 2},
}


@pytest.fixture(scope="module")
def tasks(task_folder, tmp_path_factory):
    """The task files, and one whose answers are drawn."""
    drawn = (task_folder / "answers.yaml").read_text(encoding="utf-8")
    drawn = drawn.replace("task: answers", "task: drawn")
    drawn = drawn.replace("max_gen_toks: 24", "max_gen_toks: 8, do_sample: true, temperature: 1.0")
    (task_folder / "drawn.yaml").write_text(drawn, encoding="utf-8")
    return str(task_folder)


def items(model, tasks, world):
    """Return each item's answers of the model and its scores, by task and document."""
    loaded = load_tasks(TASKS, include_path=tasks)
    settings = Settings(limit=2, bootstrap=10, batch_tokens=600)
    found = evaluate_checkpoint(model, loaded, settings, world=world, terminal=None)
    assert found["config"]["model_num_parameters"] == 260_032
    return {
        (task, one["doc_id"]): (one["filtered_resps"], [one[name] for name in one["metrics"]])
        for task, samples in found["samples"].items()
        for one in samples
    }


def of_all_spreads(model, tasks):
    """Evaluate with the model whole, sharded and cut; one start of the processes serves all."""
    return {
        name: items(model, tasks, join_world("cpu", Parallel(**sizes)))
        for name, sizes in SPREADS.items()
    }


@pytest.fixture(scope="module")
def pair(story_model, tasks):
    return run_distributed(of_all_spreads, 2, str(story_model), tasks, timeout=300)


@pytest.fixture(scope="module")
def alone(story_model, tasks):
    return items(story_model, tasks, World())


@pytest.mark.parametrize("name", ["whole on each", "sharded"])
def test_every_process_has_each_items_answers_to_the_bit(pair, alone, name):
    assert len(alone) == 2 * len(TASKS)
    assert [rank[name] for rank in pair] == [alone, alone]


def test_a_model_cut_by_tensor_gives_the_same_answers(pair, alone):
    for rank in pair:
        for (task, number), (answers, scores) in rank["cut by tensor"].items():
            wanted, figures = alone[task, number]
            if task == "drawn":
                assert answers == wanted
            assert_close(scores, figures, rtol=1e-5, atol=0)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torchtune_recipes") is None, reason="needs torchtune-recipes")
def test_the_command_says_once_what_it_says_alone(story_model, task_folder, tmp_path):
    command = [sys.executable, "-m", "torchtune_recipes.cli.main", "evaluate"]
    words = ["--checkpoint", story_model, "--tasks", "local_arc_easy", "--limit", "2"]
    alone, *several = (
        subprocess.run(
            [*command, *words, "--include-path", task_folder, *more],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        for more in (
            [],
            ["--nproc_per_node", "2"],
            ["--nproc-per-node=2", "--shard"],
            ["--nproc-per-node=2", "--tensor=2"],
        )
    )
    for done in several:
        assert (done.returncode, done.stdout) == (0, alone.stdout), done.stderr
        assert [line[:20] for line in done.stderr.splitlines()] == [
            line[:20] for line in alone.stderr.splitlines()
        ]
    assert len(list(tmp_path.rglob("results_*.json"))) == 4
