"""Every score and every answer is that of the harness's own Hugging Face backend, in fp32."""

import io

import pytest
from torchtune.testing import tiny_checkpoint
from torchtune_integrations.lm_eval.evaluation import Settings, evaluate_checkpoint
from torchtune_integrations.lm_eval.tasks import load_tasks

LIKELIHOODS = ["local_arc_easy", "local_hellaswag", "local_mmlu", "local_boolq", "fewshot"]


@pytest.fixture(scope="session")
def said():
    """Where notes go."""
    return io.StringIO()


@pytest.fixture(scope="session")
def ours(task_folder, story_model, asked, said):
    names, limit = asked
    tasks = load_tasks(names, include_path=task_folder)
    settings = Settings(limit=limit, bootstrap=100)
    return evaluate_checkpoint(story_model, tasks, settings, terminal=said)


def responses(results, task):
    return [response[0] for sample in results["samples"][task] for response in sample["resps"]]


@pytest.mark.parametrize("task", LIKELIHOODS)
def test_log_likelihoods_are_the_same_item_by_item(task, ours, theirs):
    found, wanted = responses(ours, task), responses(theirs, task)
    assert len(found) >= 2 * 12
    assert [p for p, _ in found] == pytest.approx([p for p, _ in wanted], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]


def test_contexts_too_long_are_cut_from_the_left_and_counted(ours, said):
    assert "requests were longer than the model's 512 tokens, and lost their beginning" in (
        said.getvalue()
    )  # boolq's; their scores are compared above


def test_whole_texts_score_the_same_in_windows(ours, theirs):
    found, wanted = responses(ours, "rolling"), responses(theirs, "rolling")
    assert max(map(abs, wanted)) > 1000  # several windows of the model's 512 tokens
    assert found == pytest.approx(wanted, abs=1e-2, rel=0)


def test_answers_are_the_same_texts(ours, theirs):
    found, wanted = responses(ours, "answers"), responses(theirs, "answers")
    assert found == wanted
    assert len({len(answer) for answer in found}) > 3  # some were ended, others filled their room


def test_every_figure_of_the_results_is_the_same(ours, theirs):
    assert ours["results"].keys() == theirs["results"].keys()
    for task, metrics in theirs["results"].items():
        numbers = {name: value for name, value in metrics.items() if not isinstance(value, str)}
        found = {name: ours["results"][task][name] for name in numbers}
        assert found == pytest.approx(numbers, rel=1e-5), task


def test_the_results_have_the_harness_keys(ours, theirs):
    assert theirs.keys() - ours.keys() == set()
    assert theirs["config"].keys() - ours["config"].keys() == set()
    for part in ("configs", "versions", "n-shot", "higher_is_better", "n-samples"):
        assert ours[part].keys() == theirs[part].keys()


def test_chats_are_the_same_tokens(harness, task_folder, tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", max_position_embeddings=2048)
    tasks = load_tasks(["fewshot", "answers"], include_path=task_folder)
    settings = Settings(limit=3, chat=True, bootstrap=0)
    found = evaluate_checkpoint(folder, tasks, settings, terminal=None)
    wanted = harness(folder, task_folder, ["fewshot", "answers"], limit=3, apply_chat_template=True)
    assert "<|im_start|>assistant" in found["samples"]["fewshot"][0]["arguments"][0][0]
    assert found["chat_template_sha"] is not None
    for task in ("fewshot", "answers"):
        for ours, theirs in zip(found["samples"][task], wanted["samples"][task], strict=True):
            assert ours["arguments"] == theirs["arguments"]
    likelihoods = [p for p, _ in responses(found, "fewshot")]
    assert likelihoods == pytest.approx([p for p, _ in responses(wanted, "fewshot")], abs=1e-3)
    assert responses(found, "answers") == responses(wanted, "answers")
