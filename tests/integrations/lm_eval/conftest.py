"""Tasks on local files, and what the harness's own Hugging Face backend says of a trained model."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs the extra `eval`")

NAMES = [
    "local_arc_easy",
    "local_hellaswag",
    "local_mmlu",
    "local_boolq",
    "fewshot",
    "rolling",
    "answers",
]
LIMIT = 12

ROLLING = """\
task: rolling
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/texts.jsonl}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
ANSWERS = """\
task: answers
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/texts.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "{{text[:200]}}"
doc_to_target: "{{text}}"
generation_kwargs: {until: [".", "ing "], max_gen_toks: 24}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="session")
def task_folder(shared, tmp_path_factory) -> Path:
    """The shared task files with absolute paths, and three of our own: few-shot, rolling, answers."""
    folder = tmp_path_factory.mktemp("tasks")
    for file in (shared / "data/eval/lm_eval_tasks").glob("*.yaml"):
        text = file.read_text(encoding="utf-8").replace("../shared", str(shared))
        (folder / file.name).write_text(text, encoding="utf-8")
    easy = (folder / "local_arc_easy.yaml").read_text(encoding="utf-8")
    few = easy.replace("task: local_arc_easy", "task: fewshot\nnum_fewshot: 3")
    (folder / "fewshot.yaml").write_text(few + "fewshot_split: validation\n", encoding="utf-8")
    story = (shared / "data/tinyshakespeare.txt").read_text(encoding="utf-8")
    texts = [story[start : start + size] for start, size in enumerate(range(300, 2100, 150))]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "texts.jsonl").write_text(lines, encoding="utf-8")
    for name, task in (("rolling", ROLLING), ("answers", ANSWERS)):
        text = task.replace("FOLDER", str(folder))
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def story_model(shared) -> Path:
    """A trained Llama of 260 thousand parameters, in fp32."""
    return shared / "models/stories260k"


@pytest.fixture(scope="session")
def asked() -> tuple[list[str], int]:
    """The tasks that both sides take, and how many documents of each."""
    return NAMES, LIMIT


@pytest.fixture(scope="session")
def harness() -> Callable[..., dict[str, Any]]:
    """Evaluate a folder by the harness with its own backend on transformers."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    transformers.utils.logging.disable_progress_bar()

    def harness(model: Path, tasks: Path, names: list[str], **how: Any) -> dict[str, Any]:
        manager = TaskManager(include_path=str(tasks), include_defaults=False)
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            backend = HFLM(str(model), device="cpu", dtype="float32", batch_size=8)
            how = {"bootstrap_iters": 100, **how}
            return simple_evaluate(backend, tasks=names, task_manager=manager, **how)

    return harness


@pytest.fixture(scope="session")
def theirs(harness, task_folder, story_model) -> dict[str, Any]:
    """What the harness finds of the trained model."""
    return harness(story_model, task_folder, NAMES, limit=LIMIT)
