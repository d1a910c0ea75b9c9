"""A model on tasks: the harness asks and counts, and its results go where it would put them."""

import hashlib
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TextIO

import torch
from torchtune.distributed import World
from torchtune.generation import LoadedCheckpoint, load_checkpoint
from torchtune.models import auto

from torchtune_integrations.lm_eval.tasks import SEEDS, Tasks, undisturbed

__all__ = ["Results", "Settings", "default_batch_tokens", "evaluate", "evaluate_checkpoint"]

Results = dict[str, Any]
"""The harness's results: ``results``, ``configs``, ``versions``, ``n-shot``, ``samples`` and more."""


@dataclass(frozen=True)
class Settings:
    """How tasks are put to a model.

    Args:
        limit: Documents of each task, the first ones; below 1 a share of them; None takes all.
        chat: Put each as a chat, by the checkpoint's template.
        bootstrap: Draws for the standard error of a metric that has no formula.
        seed: Of few-shot examples and drawn answers; 1234 is the harness's own.
        batch_tokens: Tokens of a forward at most; None looks at the device.
    """

    limit: float | None = None
    chat: bool = False
    bootstrap: int = 100_000
    seed: int = 1234
    batch_tokens: int | None = None


def default_batch_tokens(device: torch.device) -> int:
    """Return how many tokens a forward takes: a CPU is no faster with more than 2,048."""
    return 2048 if device.type == "cpu" else 16_384


def evaluate(lm: Any, tasks: Tasks, settings: Settings) -> Results:
    """Return the harness's results, with ``samples``; random state and terminal stay as they are.

    Args:
        lm: A `TorchtuneLM`, or any ``LM`` of the harness's.
        tasks: What `load_tasks` returned; they can be evaluated again and again.
        settings: How.
    """
    from lm_eval.evaluator import evaluate as run

    limit = settings.limit
    for task in tasks["tasks"].values():
        task.set_fewshot_seed(settings.seed)
    with undisturbed():
        found: Results = run(
            lm,
            tasks,
            limit=limit if limit is None or limit < 1 else int(limit),
            bootstrap_iters=settings.bootstrap,
            apply_chat_template=settings.chat,
            fewshot_as_multiturn=settings.chat,
            confirm_run_unsafe_code=True,  # `load_tasks` has asked
        )
    return found


def evaluate_checkpoint(
    checkpoint: str | Path,
    tasks: Tasks,
    settings: Settings,
    *,
    base: str | Path | None = None,
    dtype: Any = "auto",
    device: torch.device | str = "cpu",
    world: World | None = None,
    terminal: TextIO | None = sys.stderr,
) -> Results:
    """Return the harness's results of a checkpoint, with what its command adds to them.

    Args:
        checkpoint: What `torchtune.generation.load_checkpoint` takes.
        tasks: What `load_tasks` returned.
        settings: How.
        base: An adapter's base, where it is not where the adapter says.
        dtype: Of weights and computation: ``auto``, ``bf16`` or ``fp32``.
        device: Where it is computed.
        world: The processes that share the work, each on its own device; each gets all results.
        terminal: Where bars and notes are shown.
    """
    from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker

    from torchtune_integrations.lm_eval.model import TorchtuneLM

    began, tracker = time.time(), GeneralConfigTracker()
    world = world or World(device=torch.device(device))
    loaded = load_checkpoint(checkpoint, base=base, dtype=dtype, world=world)
    lm = TorchtuneLM(
        loaded.model,
        loaded.tokenizer,
        loaded.form,
        batch_tokens=settings.batch_tokens or default_batch_tokens(world.device),
        world=world,
        seed=settings.seed,
        terminal=terminal,
    )
    model = {"pretrained": _name(loaded.folder)}
    tracker.log_experiment_args(
        "torchtune", model, None, lm.chat_template(settings.chat), settings.chat
    )
    results = evaluate(lm, tasks, settings)
    tracker.log_end_time()
    if lm.cut and terminal is not None:
        what = f"{lm.cut:,} requests were longer than the model's {lm.max_length:,} tokens"
        print(f"note: {what}, and lost their beginning", file=terminal)
    results["task_hashes"] = {task: _hash(found) for task, found in results["samples"].items()}
    results |= {"config": _config(loaded, lm, settings, model), "date": began}
    return results | _surroundings(lm) | asdict(tracker)


def _name(folder: Path) -> str:
    """Return what a checkpoint is called in results: its path, short where it is below this folder."""
    whole, here = folder.resolve(), Path.cwd().resolve()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else whole)


def _config(
    loaded: LoadedCheckpoint, lm: Any, settings: Settings, model: dict[str, str]
) -> dict[str, Any]:
    """Return what the harness writes as ``config``."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in auto(loaded.base).parameters())
    return {
        "model": "torchtune",
        "model_args": model,
        "model_num_parameters": parameters,
        "model_dtype": str(loaded.model.output_matrix().dtype),
        "model_revision": "",
        "model_sha": "",
        "batch_size": f"{lm.batch_tokens} tokens",
        "batch_sizes": [],
        "device": str(lm.device),
        "use_cache": None,
        "limit": settings.limit,
        "bootstrap_iters": settings.bootstrap,
        "gen_kwargs": None,
        "random_seed": SEEDS[0],
        "numpy_seed": SEEDS[1],
        "torch_seed": settings.seed,
        "fewshot_seed": settings.seed,
    }


def _surroundings(lm: Any) -> Results:
    """Return what the harness writes of the machine and the tokenizer."""
    names, tokenizer = lm.tokenizer.names, lm.tokenizer
    ids = {"pad_token": None, "eos_token": tokenizer.eos_id, "bos_token": tokenizer.bos_id}
    named = {f"tokenizer_{name}": [names.get(name), str(own)] for name, own in ids.items()}
    return _machine() | named | {"eot_token_id": lm.eot_token_id, "max_length": lm.max_length}


@cache
def _machine() -> Results:
    """Return versions, devices and commit; asking for them takes seconds."""
    from lm_eval.loggers.utils import add_env_info

    found: Results = {"git_hash": _git_hash()}
    add_env_info(found)
    return found


def _hash(samples: list[dict[str, Any]]) -> str:
    """Return the harness's fingerprint of a task's documents and prompts."""
    parts = ("doc_hash", "prompt_hash", "target_hash")
    text = "".join(sample[part] for sample in samples for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()


def _git_hash() -> str | None:
    """Return the current folder's commit; the harness's own way complains where there is none."""
    command = ["git", "describe", "--always"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
