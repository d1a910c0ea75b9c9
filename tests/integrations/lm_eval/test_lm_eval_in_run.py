"""The evaluator of a run gives the figures of the command, in any world, and leaves no trace."""

import random

import numpy
import pytest
import torch
from torchtune.config import build
from torchtune.data import Documents, auto_tokenizer, flat_batch
from torchtune.distributed import World, join_world, shard
from torchtune.errors import ConfigError, MissingError
from torchtune.losses import LinearCrossEntropy
from torchtune.models import from_pretrained
from torchtune.peft import lora
from torchtune.testing import run_distributed
from torchtune.training import init_weights, train_step
from torchtune_integrations.lm_eval import Evaluator
from torchtune_integrations.lm_eval.evaluation import Settings, evaluate_checkpoint
from torchtune_integrations.lm_eval.results import figures
from torchtune_integrations.lm_eval.tasks import load_tasks

TASKS = ["local_arc_easy", "rolling", "answers"]


def in_a_run(folder, tasks, look):
    """Return figures before each of two steps, the steps' losses, and the random state at the end."""
    world, tokenizer = join_world("cpu"), auto_tokenizer(folder)
    model = lora(from_pretrained(folder, dtype=torch.float32), rank=2, dropout=0.5)
    init_weights(model, seed=0, skip={n for n, _ in model.named_parameters() if "lora" not in n})
    model = shard(model, world)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    text = tokenizer.encode("Once upon a time there was a dog.")
    batch = flat_batch(Documents.of([(text, [True] * len(text))]), [0])
    evaluator = Evaluator(TASKS, limit=3, include_path=tasks) if look else None
    torch.manual_seed(world.rank), random.seed(1), numpy.random.seed(2)
    found, losses = [], []
    for _ in range(2):
        if evaluator:
            found.append(evaluator(model, tokenizer, world))
            assert model.training or not losses  # `train_step` puts it into training mode
        done = train_step(model, optimizer, [batch], world, loss=LinearCrossEntropy())
        losses.append(done.loss)
    return found, losses, (torch.rand(1).item(), random.random(), numpy.random.rand())


def with_and_without(folder, tasks):
    """Return a run that is evaluated, and one that is not."""
    return in_a_run(folder, tasks, look=True), in_a_run(folder, tasks, look=False)


@pytest.fixture(scope="module", params=[1, 2])
def runs(request, story_model, task_folder):
    """Both runs as each process saw them: on one process, and on two."""
    return run_distributed(with_and_without, request.param, str(story_model), str(task_folder))


def test_every_process_has_the_figures_of_the_command(runs, story_model, task_folder):
    tasks = load_tasks(TASKS, include_path=task_folder)
    settings = Settings(limit=3, bootstrap=100)
    wanted = figures(evaluate_checkpoint(story_model, tasks, settings, terminal=None))
    assert {"local_arc_easy/acc", "local_arc_easy/acc_stderr", "rolling/word_perplexity"} <= (
        wanted.keys()
    )
    for ((first, second), _, _), _ in runs:
        assert first == pytest.approx(wanted, rel=1e-5)  # an untrained adapter changes nothing
        assert second["rolling/word_perplexity"] != first["rolling/word_perplexity"]


def test_a_rehearsal_scores_two_documents_of_each_task(story_model, task_folder):
    evaluator = Evaluator(["local_arc_easy"], include_path=str(task_folder))
    model = from_pretrained(story_model, dtype=torch.float32)
    found = evaluator(model, auto_tokenizer(story_model), World(), few=True)
    tasks = load_tasks(["local_arc_easy"], include_path=task_folder)
    settings = Settings(limit=2, bootstrap=100)
    wanted = figures(evaluate_checkpoint(story_model, tasks, settings, terminal=None))
    assert found == pytest.approx(wanted, rel=1e-5)


def test_the_run_goes_on_as_if_nothing_had_been_evaluated(runs):
    for (_, *with_it), (_, *without) in runs:
        assert with_it == without  # losses with dropout, and three random states: to the bit


def test_it_is_due_every_n_steps_and_at_the_end(task_folder):
    component = {"_component_": "lm_eval", "tasks": "rolling", "include_path": str(task_folder)}
    every = build("evaluator", {**component, "every_n_steps": 10})
    assert [step for step in range(1, 26) if every.due(step, last=step == 25)] == [10, 20, 25]
    at_the_end = build("evaluator", component)
    assert [step for step in range(1, 26) if at_the_end.due(step, last=step == 25)] == [25]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"limit": 0}, ConfigError, "E-RANGE.*evaluate.limit"),
        ({"every_n_steps": -1}, ConfigError, "E-RANGE.*evaluate.every_n_steps"),
        ({"include_path": "absent"}, MissingError, "E-EVAL-PATH"),
    ],
)
def test_what_cannot_work_is_said_before_the_run(change, error, said, task_folder):
    with pytest.raises(error, match=f"(?s){said}"):
        Evaluator(**{"tasks": "rolling", "include_path": str(task_folder), **change})
