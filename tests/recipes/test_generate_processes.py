"""Several processes give the answers of one, in order, whether each has the whole model or a part."""

import contextlib
import importlib.util
import io
import json
import sys
from pathlib import Path

import pytest
import torchtune_recipes
from torchtune.config import Parallel
from torchtune.testing import run_distributed, tiny_checkpoint

QUESTIONS = [f"{'Count. ' * number}What is {number}?" for number in range(5)]
CASES = {
    "greedy": {},
    "one to a batch": {"batch_size": 1},
    "drawn": {"temperature": 1.2, "top_k": 50, "seed": 3},
    "more processes than batches": {"batch_size": 8, "temperature": 1.2},
    "streamed": {"stream": True, "json": False},
    "sharded": {"parallel": {"data_shard": 2}, "temperature": 1.2},
    "cut by tensor": {"parallel": {"tensor": 2}},
}
SHARED = {"max_new_tokens": 4, "batch_size": 2, "json": True, "device": "cpu", "prompt": QUESTIONS}


def printed(folder, params, processes):
    """Run the recipe's file as a copy of it would be; return what it prints on stdout."""
    path = Path(torchtune_recipes.__file__).parent / "recipes" / "generate.py"
    spec = importlib.util.spec_from_file_location("generate_recipe", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    given = {**SHARED, **params, "checkpoint": str(folder)}
    sizes = given.pop("parallel", {}) if processes > 1 else {}
    given["parallel"] = Parallel(**{"data_replicate": -1, "data_shard": 1, **sizes})
    made = module.GenerateRecipe(module.GenerateParams(**given))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        made.setup()
        made.generate()
    return said.getvalue()


def all_printed(folder, processes):
    """Run every case; one start of the processes serves them all."""
    return {name: printed(folder, params, processes) for name, params in CASES.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def alone(folder):
    return all_printed(folder, 1)


@pytest.fixture(scope="module")
def pair(folder):
    return run_distributed(all_printed, 2, folder, 2)


@pytest.mark.parametrize("case", CASES)
def test_the_main_process_prints_the_answers_of_one_process(alone, pair, case):
    main, other = (rank[case] for rank in pair)
    assert (main, other) == (alone[case], "")


def test_each_prompt_has_its_answer_in_order(alone):
    lines = [json.loads(line) for line in alone["drawn"].splitlines()]
    assert [line["prompt"] for line in lines] == QUESTIONS
    assert len({line["answer"] for line in lines}) > 1


@pytest.mark.slow
def test_the_number_of_processes_may_stand_behind_the_recipe(tune, folder, alone):
    words = [
        "--checkpoint",
        str(folder),
        "max_new_tokens=4",
        "batch_size=2",
        "device=cpu",
        "--json",
    ]
    words += [f"prompt={json.dumps(QUESTIONS)}"]
    for form in ("--nproc-per-node=2", "--nproc_per_node 2"):
        done = tune("generate", *form.split(), *words)
        assert (done.returncode, done.stdout) == (0, alone["greedy"]), done.stderr
    done = tune("run", "--nproc_per_node", "2", "generate", *words, "parallel.context=2")
    assert done.returncode == 2 and "parallel.context" in done.stderr
