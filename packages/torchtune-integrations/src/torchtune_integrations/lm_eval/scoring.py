"""Log-likelihoods of continuations, computed in flat rows that share what texts begin with."""

import math
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, TextIO

import torch
from torch import Tensor
from torchtune.distributed import World
from torchtune.errors import DataError
from torchtune.losses import VocabularyShard
from torchtune.modules import Decoder
from tqdm import tqdm

from torchtune_integrations.lm_eval.token_tree import common, plant, runs

__all__ = ["Request", "Score", "progress_bar", "score"]

Text = tuple[int, ...]
IDLE: Text = (0,)
"""What a process reads that has no row left: the others' shards need it in step."""

LOGITS_AT_ONCE = {False: 2**22, True: 2**27}
"""Logits in fp32 at a time, off and on a GPU."""


class Request(NamedTuple):
    """What is asked about: how likely `continuation` is after `context`.

    Args:
        context: Token ids, at least one.
        continuation: Token ids; an empty one is certain.
    """

    context: Sequence[int]
    continuation: Sequence[int]


class Score(NamedTuple):
    """The answer.

    Args:
        log_likelihood: Sum over the continuation's tokens, natural logarithm.
        greedy: Whether each token of it is the likeliest one.
    """

    log_likelihood: float
    greedy: bool


class _Whole:
    """The vocabulary of a model that is not cut."""

    start = 0
    size = sys.maxsize  # above every id

    def sum(self, values: Tensor) -> Tensor:
        """Return `values`."""
        return values

    def max(self, values: Tensor) -> Tensor:
        """Return `values`."""
        return values


WHOLE = _Whole()


class _TokenScores:
    """A `loss` for `Decoder.forward` that gives the log-probability of each asked token.

    Args:
        rows: Places of the hidden states `[n]`.
        targets: The token asked about at each `[n]`.
    """

    def __init__(self, rows: Tensor, targets: Tensor) -> None:
        self.rows, self.targets = rows, targets

    def __call__(
        self,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        *,
        vocabulary: VocabularyShard = WHOLE,
    ) -> Tensor:
        """Return the log-probability, and 1 where no token is likelier, fp32 `[n, 2]`.

        `weight` has the rows of `vocabulary`, where several processes hold the output matrix.
        """
        rows, where = self.rows.unique(return_inverse=True)
        size = max(1, LOGITS_AT_ONCE[hidden.is_cuda] // weight.shape[0])
        found = torch.empty(len(self.rows), 2, device=hidden.device)
        for first in range(0, len(rows), size):
            logits = (hidden[rows[first : first + size]] @ weight.t()).float()
            asked = ((where >= first) & (where < first + size)).nonzero().flatten()
            own, targets = where[asked] - first, self.targets[asked]
            likeliest = _likeliest(logits, vocabulary)[own]
            found[asked, 0] = _log_probabilities(logits, own, targets, vocabulary)
            found[asked, 1] = (likeliest == targets).float()
        return found


def _log_probabilities(
    logits: Tensor, rows: Tensor, targets: Tensor, vocabulary: VocabularyShard
) -> Tensor:
    """Return that of each of `targets [n]` by the logits in its place of `rows [n]`."""
    columns = targets - vocabulary.start
    held = (columns >= 0) & (columns < logits.shape[1])
    chosen = vocabulary.sum(logits[rows, columns.where(held, 0)] * held)
    normaliser = logits.logsumexp(-1)
    highest = vocabulary.max(normaliser)
    normaliser = highest + vocabulary.sum((normaliser - highest).exp()).log()
    return chosen - normaliser[rows]


def _likeliest(logits: Tensor, vocabulary: VocabularyShard) -> Tensor:
    """Return the likeliest token's id of each row, the first of several."""
    ids = logits.argmax(-1)
    value = logits.gather(1, ids[:, None]).squeeze(1)
    is_highest = value == vocabulary.max(value)
    return -vocabulary.max(-(ids + vocabulary.start).where(is_highest, vocabulary.size))


def score(
    model: Decoder,
    requests: Sequence[Request],
    *,
    batch_tokens: int,
    world: World | None = None,
    terminal: TextIO | None = None,
) -> list[Score]:
    """Return how likely each continuation is after its context.

    A context too long for the model loses its beginning. Texts that begin alike share the tokens of
    that beginning, and only the continuations' logits are made. Log-softmax and sum are in fp32
    whatever the dtype of the weights.

    Args:
        model: In evaluation mode; sharded, cut by tensor or neither.
        requests: The same on every process.
        batch_tokens: Tokens of a row at most, where no text alone is longer.
        world: The processes, which share the work; all must call this.
        terminal: Where a bar is shown, if it is one.

    Raises:
        DataError: E-EVAL-LENGTH: a continuation has more tokens than the model has positions.
    """
    world = world or World()
    asking: dict[Text, list[int]] = {}
    scores = {i: Score(0.0, True) for i, (_, asked) in enumerate(requests) if not asked}
    for number, request in enumerate(requests):
        if number not in scores:
            asking.setdefault(_text(request, model.max_positions), []).append(number)
    rows = _rows(sorted(asking), batch_tokens)
    mine = rows[world.data_rank :: world.data_size]
    idle = -(-len(rows) // world.data_size) - len(mine)
    with progress_bar(len(requests), "scored", terminal) as bar:
        for texts in [*mine, *[[IDLE]] * idle]:
            asked = {text: asking.get(text, []) for text in texts}
            found = _score_row(model, asked, requests, world.device)
            scores.update(found)
            bar.update(min(len(found) * world.data_size, len(requests) - bar.n))
    for others in world.gather(scores):
        scores.update(others)
    return [scores[number] for number in range(len(requests))]


def progress_bar(total: int, what: str, terminal: TextIO | None) -> "tqdm[Any]":
    """Return a bar over requests, which shows nothing where `terminal` is none."""
    hidden = True if terminal is None else None  # None: tqdm looks whether the file is a terminal
    return tqdm(total=total, desc=what, unit="request", file=terminal, disable=hidden, leave=False)


@torch.no_grad()
def _score_row(
    model: Decoder,
    asked: dict[Text, list[int]],
    requests: Sequence[Request],
    device: torch.device,
) -> dict[int, Score]:
    """Return the scores of the requests that ask about some texts, by their numbers."""
    tree = plant(list(asked), device)
    rows: list[int] = []
    targets: list[int] = []
    for numbers, places in zip(asked.values(), tree.places, strict=True):
        for number in numbers:
            continuation = requests[number].continuation
            rows += places[-len(continuation) :]
            targets += continuation
    loss = _TokenScores(*torch.tensor([rows, targets], device=device).unbind())
    found = iter(model(tree.row, loss=loss, attend=tree.attention()).tolist())
    scores = {}
    for number in (number for numbers in asked.values() for number in numbers):
        tokens = list(islice(found, len(requests[number].continuation)))
        scores[number] = Score(math.fsum(p for p, _ in tokens), all(hit for _, hit in tokens))
    return scores


def _text(request: Request, positions: int) -> Text:
    """Return the tokens that the model reads, of which the last ones predict the continuation."""
    if len(request.continuation) > positions:
        what = (
            f"a continuation of {len(request.continuation)} tokens; "
            f"the model has {positions} positions"
        )
        raise DataError("E-EVAL-LENGTH", what, do="take another task, or a model with more")
    return (*request.context, *request.continuation)[-positions - 1 : -1]


def _rows(texts: Sequence[Text], budget: int) -> list[list[Text]]:
    """Put sorted texts into rows of at most `budget` tokens, those that begin alike together."""
    clusters = [cluster for run in runs(texts, 0) for cluster in _clusters(run, budget)]
    rows: list[list[Text]] = []
    room = 0
    for size, cluster in sorted(clusters, key=lambda found: -found[0]):
        if size > room:
            rows.append([])
            room = budget
        rows[-1] += cluster
        room -= size
    return [sorted(row) for row in rows]


def _clusters(run: Sequence[Text], budget: int) -> Iterator[tuple[int, list[Text]]]:
    """Cut a run of texts that begin alike into parts of at most `budget` tokens, each with its size."""
    size, cluster = 0, list[Text]()
    for text in run:
        added = len(text) - (common(cluster[-1], text) if cluster else 0)
        if cluster and size + added > budget:
            yield size, cluster
            size, cluster, added = 0, [], len(text)
        size += added
        cluster.append(text)
    yield size, cluster
