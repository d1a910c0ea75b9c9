"""Texts that begin alike as one flat row, in which each shared beginning stands once.

The row is a forest: a segment of tokens follows its parent segment, and a token sees the tokens on
its own way to the root and no others. That is what every text alone would see, so nothing changes
but how often a beginning is computed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchtune.data import IGNORED, Batch
from torchtune.modules import Attend, flat_attention

__all__ = ["TokenTree", "TreeAttention", "plant"]

LEAST = 8
"""Fewer common tokens are computed again: a segment of its own costs more than it saves."""

GROUP_STRETCH, GROUP_SLACK = 1.5, 16
"""Branches are attended to together whose longest way is at most this many times, plus so many
tokens, the shortest."""


class Segment(NamedTuple):
    """Tokens that stand together in the row.

    Args:
        first: Where in the row they begin.
        tokens: Their ids.
        way: Places in the row of all tokens before them, from the root.
    """

    first: int
    tokens: tuple[int, ...]
    way: tuple[int, ...]

    @property
    def places(self) -> tuple[int, ...]:
        """Places of all tokens from the root to the last of these."""
        return (*self.way, *range(self.first, self.first + len(self.tokens)))


@dataclass(frozen=True)
class TokenTree:
    """A flat row of segments, roots first.

    Args:
        roots: Segments that begin texts.
        branches: Segments that go on from another one.
        places: Of each text the places of its tokens, in order.
        device: Where the tensors are made.
    """

    roots: tuple[Segment, ...]
    branches: tuple[Segment, ...]
    places: tuple[tuple[int, ...], ...]
    device: torch.device

    @cached_property
    def tokens(self) -> Tensor:
        """Token ids `[T]`."""
        segments = (*self.roots, *self.branches)
        ids = [token for segment in segments for token in segment.tokens]
        return torch.tensor(ids, device=self.device)

    @cached_property
    def positions(self) -> Tensor:
        """Positions `[T]` in the texts."""
        segments = (*self.roots, *self.branches)
        spans = (range(len(s.way), len(s.way) + len(s.tokens)) for s in segments)
        return torch.tensor([place for span in spans for place in span], device=self.device)

    @property
    def row(self) -> Batch:
        """The row for a forward; nothing in it is trained, as a scorer knows its own targets."""
        labels = torch.full_like(self.tokens, IGNORED)
        lengths = tuple(len(segment.tokens) for segment in (*self.roots, *self.branches))
        return Batch(self.tokens, labels, self.positions, lengths, supervised=0)

    def attention(self) -> Attend:
        """Return attention in which each token sees the tokens on its way."""
        lengths = tuple(len(root.tokens) for root in self.roots)
        if not self.branches:
            return flat_attention(lengths, self.device)
        return TreeAttention(lengths, self.branches, self.device)


class Gathered(NamedTuple):
    """Branches of like length as one padded batch.

    Args:
        queries: Place of each query `[branches, longest branch]`, padded on the left.
        keys: Place of each key `[branches, longest way]`, padded on the left.
        visible: Which query sees which key, bool `[branches, 1, query, key]`.
        real: Which queries are no padding, bool `[branches, longest branch]`.
    """

    queries: Tensor
    keys: Tensor
    visible: Tensor
    real: Tensor


class TreeAttention:
    """Attention over `[T, heads, head_dim]` of a `TokenTree`; made once a forward.

    Roots are documents of their own. Branches of like length are gathered into one batch, each with
    the keys of its whole way.

    Args:
        roots: The roots' lengths.
        branches: The other segments.
        device: Where the row is.
    """

    def __init__(
        self, roots: tuple[int, ...], branches: Sequence[Segment], device: torch.device
    ) -> None:
        self.size = sum(roots)
        self.of_roots = flat_attention(roots, device)
        self.groups = [_gather(group, device) for group in _groups(branches)]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return `[T, heads, head_dim]` for `q` of that shape and `k`, `v [T, kv_heads, head_dim]`."""
        return _outside_of_graphs()(self, q, k, v)


def _attend(tree: TreeAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = torch.empty_like(q)
    out[: tree.size] = tree.of_roots(q[: tree.size], k[: tree.size], v[: tree.size])
    for group in tree.groups:
        queries = q[group.queries].transpose(1, 2)
        keys, values = (x[group.keys].transpose(1, 2) for x in (k, v))
        found = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=group.visible, enable_gqa=q.shape[1] != k.shape[1]
        )
        out[group.queries[group.real]] = found.transpose(1, 2)[group.real]
    return out


@cache
def _outside_of_graphs() -> Callable[[TreeAttention, Tensor, Tensor, Tensor], Tensor]:
    """Keep attention out of compiled graphs: its shapes are others in every row."""
    kept_out: Callable[[TreeAttention, Tensor, Tensor, Tensor], Tensor]
    kept_out = torch.compiler.disable(_attend)
    return kept_out


def plant(texts: Sequence[tuple[int, ...]], device: torch.device | str = "cpu") -> TokenTree:
    """Return the tree of `texts`.

    Args:
        texts: Token ids, at least one of each; sorted, and each one once.
        device: Where its tensors are made.
    """
    nodes: list[tuple[int, tuple[int, ...]]] = []  # parent, tokens
    ends: dict[tuple[int, ...], int] = {}
    for run in runs(texts, 0):
        _grow(run, 0, -1, nodes, ends)
    order = sorted(range(len(nodes)), key=lambda node: nodes[node][0] >= 0)  # roots first; stable
    segments: dict[int, Segment] = {-1: Segment(0, (), ())}
    first = 0
    for node in order:
        parent, tokens = nodes[node]
        segments[node] = Segment(first, tokens, segments[parent].places)
        first += len(tokens)
    roots = tuple(segments[node] for node in order if nodes[node][0] < 0)
    branches = tuple(segments[node] for node in order if nodes[node][0] >= 0)
    places = tuple(segments[ends[text]].places for text in texts)
    return TokenTree(roots, branches, places, torch.device(device))


def runs(texts: Sequence[tuple[int, ...]], depth: int) -> Iterator[Sequence[tuple[int, ...]]]:
    """Cut sorted `texts` where neighbours have less than `LEAST` tokens in common after `depth`."""
    start = 0
    for i in range(1, len(texts) + 1):
        if i == len(texts) or common(texts[i - 1], texts[i]) < depth + LEAST:
            yield texts[start:i]
            start = i


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many first tokens two texts have in common."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(i for i in range(shorter) if one[i] != other[i])


def _grow(
    run: Sequence[tuple[int, ...]],
    depth: int,
    parent: int,
    nodes: list[tuple[int, tuple[int, ...]]],
    ends: dict[tuple[int, ...], int],
) -> None:
    """Add the segment that the texts of `run` have in common after `depth`, and what follows it."""
    end = common(run[0], run[-1])  # they are sorted: what these two share, all do
    node = len(nodes)
    nodes.append((parent, run[0][depth:end]))
    for text in run:
        if len(text) == end:
            ends[text] = node
    for rest in runs([text for text in run if len(text) > end], end):
        _grow(rest, end, node, nodes, ends)


def _groups(branches: Sequence[Segment]) -> list[list[Segment]]:
    """Put branches together whose ways are of like length."""
    groups: list[list[Segment]] = []
    longest = 0.0
    for branch in sorted(branches, key=lambda branch: len(branch.places)):
        if not groups or len(branch.places) > longest:
            groups.append([])
            longest = GROUP_STRETCH * len(branch.places) + GROUP_SLACK
        groups[-1].append(branch)
    return groups


def _gather(branches: Sequence[Segment], device: torch.device) -> Gathered:
    rows = max(len(branch.tokens) for branch in branches)
    columns = max(len(branch.places) for branch in branches)
    keys = torch.zeros(len(branches), columns, dtype=torch.long)
    own = torch.tensor([len(branch.tokens) for branch in branches])
    whole = torch.tensor([len(branch.places) for branch in branches])
    for row, branch in enumerate(branches):
        keys[row, columns - len(branch.places) :] = torch.tensor(branch.places)
    queries = keys[:, columns - rows :]
    real = torch.arange(rows) >= rows - own[:, None]
    there = torch.arange(columns) >= columns - whole[:, None]
    causal = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows)
    visible = (causal & there[:, None]) | ~real[:, :, None]  # padding sees all: no empty softmax
    parts = (queries, keys, visible[:, None], real)
    return Gathered(*(part.to(device) for part in parts))
