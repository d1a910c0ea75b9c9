"""Benchmarks in a training run: the component `evaluator.lm_eval`."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from torchtune.errors import ConfigError

from torchtune_integrations.lm_eval.installed import check_installed

if TYPE_CHECKING:
    from torch import nn
    from torchtune.data import Tokenizer
    from torchtune.distributed import World
    from torchtune.modules import Decoder

__all__ = ["Evaluator"]

FEW = 2
BOOTSTRAP = 100
"""Draws for the error of a metric without a formula: in a run it must not take long."""


class Evaluator:
    """Score the model in training on tasks of lm-evaluation-harness.

    Several processes share the work, on a sharded model too, and all get the same figures. The
    model's mode and the random state are afterwards what they were.

    Args:
        tasks: Names as ``tune evaluate --tasks`` takes them.
        every_n_steps: Optimizer steps from one evaluation to the next; at the run's end in any case.
        limit: Documents of each task, the first ones.
        include_path: A folder with task files of the user's own.
        num_fewshot: Examples before each question, where a task does not fix it.
        apply_chat_template: Put the questions as chats.
        batch_tokens: Tokens of a forward at most; by default 2,048 on a CPU, else 16,384.

    Raises:
        ConfigError: E-RANGE for a number out of range; E-EVAL-TASK for a task that there is not.
        MissingError: E-PACKAGE: the harness is not installed; E-EVAL-DATA: a task's data is missing.
    """

    def __init__(
        self,
        tasks: str | Sequence[str],
        *,
        every_n_steps: int | None = None,
        limit: int | None = None,
        include_path: str | None = None,
        num_fewshot: int | None = None,
        apply_chat_template: bool = False,
        batch_tokens: int | None = None,
    ) -> None:
        check_installed("evaluate")
        counts = {"every_n_steps": every_n_steps, "limit": limit, "batch_tokens": batch_tokens}
        for name, value in counts.items():
            if value is not None and value < 1:
                what = f"must be at least 1, found {value}"
                raise ConfigError("E-RANGE", what, where=f"evaluate.{name}")
        from torchtune_integrations.lm_eval.tasks import load_tasks

        self._tasks = load_tasks(
            split_names(tasks), include_path=include_path, num_fewshot=num_fewshot
        )
        self._every = every_n_steps
        self._limit, self._chat, self._batch_tokens = limit, apply_chat_template, batch_tokens

    def due(self, step: int, *, last: bool) -> bool:
        """Say whether it is time after `step` optimizer steps; `last` is the end of the run."""
        return last or (self._every is not None and step % self._every == 0)

    def __call__(
        self, model: "nn.Module", tokenizer: "Tokenizer", world: "World", *, few: bool = False
    ) -> dict[str, float]:
        """Return figures such as ``arc_easy/acc`` and ``arc_easy/acc_stderr``.

        Args:
            model: A `Decoder`, sharded or not.
            tokenizer: The model's.
            world: The processes; all must call this.
            few: Score two documents of each task, whatever `limit` says.

        Raises:
            MissingError: E-CHAT-TEMPLATE: chats are wanted, and the tokenizer has no template.
        """
        from torchtune.data import ChatFormat

        from torchtune_integrations.lm_eval.evaluation import (
            Settings,
            default_batch_tokens,
            evaluate,
        )
        from torchtune_integrations.lm_eval.model import TorchtuneLM
        from torchtune_integrations.lm_eval.results import figures

        limit = FEW if few else self._limit
        settings = Settings(limit=limit, chat=self._chat, bootstrap=BOOTSTRAP)
        form = ChatFormat(tokenizer) if self._chat and tokenizer.chat_template else None
        batch_tokens = self._batch_tokens or default_batch_tokens(world.device)
        lm = TorchtuneLM(
            cast("Decoder", model), tokenizer, form, batch_tokens=batch_tokens, world=world
        )
        was_training = model.training
        model.eval()
        try:
            with _in_this_process():
                return figures(evaluate(lm, self._tasks, settings))
        finally:
            model.train(was_training)


def split_names(words: str | Sequence[str]) -> list[str]:
    """Return task names from words that may each hold several, between commas."""
    listed = [words] if isinstance(words, str) else words
    return [name.strip() for word in listed for name in word.split(",") if name.strip()]


@contextmanager
def _in_this_process() -> Iterator[None]:
    """Keep the harness from forking, for its standard errors, a process that trains."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before
