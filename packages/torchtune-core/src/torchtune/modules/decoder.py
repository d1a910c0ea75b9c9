"""The decoder-only transformer that every text family is built from."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune.modules.attention import Attend, Attention, dense_attention
from torchtune.modules.flat_attention import flat_attention
from torchtune.modules.linear import OutputLinear
from torchtune.modules.rope import Rope, Rotation

__all__ = ["Block", "Cache", "Decoder", "FlatRow", "TokenLoss"]


class FlatRow(Protocol):
    """A flat micro-batch: documents laid end to end, without padding (`torchtune.data.Batch`)."""

    @property
    def tokens(self) -> Tensor:
        """Token ids `[T]`."""

    @property
    def labels(self) -> Tensor:
        """Targets `[T]`, already shifted; -100 where untrained."""

    @property
    def positions(self) -> Tensor:
        """Positions `[T]`, from 0 in each document."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """The documents' lengths; they sum to T."""


class TokenLoss(Protocol):
    """A sum of token losses that never sees whole logits (`torchtune.losses`)."""

    def __call__(self, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        """Return the fp32 sum, shape (), for `hidden [T, D]`, `weight [V, D]`, `labels [T]`."""


class Cache(Protocol):
    """Keys and values of tokens already seen (`torchtune.generation.KVCache`)."""

    def positions(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Make room for `tokens [batch, seq]` and return their positions `[batch, seq]`.

        In `mask [batch, seq]`, False is padding, which takes no position and is never attended to.
        """

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store `k` and `v [batch, seq, kv_heads, head_dim]` of `layer`, and return what `q` finds."""


class Block(nn.Module):
    """One pre-norm layer: `x + attention(norm(x))`, then `x + mlp(norm(x))`.

    Args:
        attention: The attention layer.
        mlp: The feed-forward layer.
        attention_norm: Norm before attention.
        mlp_norm: Norm before the feed-forward layer.
    """

    def __init__(
        self,
        *,
        attention: Attention,
        mlp: nn.Module,
        attention_norm: nn.Module,
        mlp_norm: nn.Module,
    ) -> None:
        super().__init__()
        self.self_attn = attention
        self.mlp = mlp
        self.input_layernorm = attention_norm
        self.post_attention_layernorm = mlp_norm

    def forward(self, x: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """Map hidden states `x [*, dim]` to `[*, dim]`; `rotation`, `attend` as for `Attention`."""
        x = x + self.self_attn(self.input_layernorm(x), rotation, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class _Stack(nn.Module):
    """Embedding, layers and norm, under the name that checkpoints give them together: `model`."""

    def __init__(self, embed_tokens: nn.Embedding, layers: nn.ModuleList, norm: nn.Module) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.layers = layers
        self.norm = norm


class Decoder(nn.Module):
    """A decoder-only language model whose parameters are called as in Hugging Face's checkpoints.

    Args:
        vocab_size: Number of token ids.
        dim: Size of the hidden states.
        blocks: The layers, in order.
        norm: The last norm.
        rope: Gives the rotation from positions.
        tied: Whether the output matrix is the embedding.
        max_positions: How many positions the model was made for.
        hf_config: What a config.json says of this model; written with its checkpoints.
        tensor_plan: How tensor parallel cuts the layers of a block, by the last part of their names
            (see `torchtune.distributed.tensor_parallel`); None where it cannot.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        blocks: Sequence[nn.Module],
        norm: nn.Module,
        rope: Rope,
        tied: bool,
        max_positions: int,
        hf_config: dict[str, Any],
        tensor_plan: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.model = _Stack(nn.Embedding(vocab_size, dim), nn.ModuleList(blocks), norm)
        self.lm_head = None if tied else OutputLinear(dim, vocab_size, bias=False)
        self.rope = rope
        self.tied = tied
        self.max_positions = max_positions
        self.hf_config = hf_config
        self.tensor_plan = tensor_plan

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers, in order."""
        layers = self.model.layers
        assert isinstance(
            layers, nn.ModuleList
        )  # for the type checker: attributes are Tensor | Module
        return layers

    def output_matrix(self) -> Tensor:
        """Return the matrix `[vocab, dim]` that maps hidden states to logits."""
        head = self.lm_head
        return self.model.embed_tokens.weight if head is None else head.matrix()

    def forward(
        self,
        x: Tensor | FlatRow,
        *,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        loss: TokenLoss | None = None,
        attend: Attend | None = None,
    ) -> Tensor:
        """Return logits, or the loss of a flat micro-batch.

        Args:
            x: Ids `[batch, seq]`, or a flat micro-batch.
            mask: For ids, bool: `[batch, seq]`, True for real tokens (positions count those alone),
                or `[batch, query, key]`, True where a query may see a key. Causal without one.
            cache: For ids: what was seen before; `mask` is then that of the new tokens.
            loss: For a flat micro-batch: called inside the forward with the hidden states, the
                output matrix and the labels, so that no logits are made and FSDP manages the matrix.
            attend: For a flat micro-batch: which tokens see which, where that is not each document
                for itself, as when continuations share the tokens of one beginning.

        Returns:
            Logits `[batch, seq, vocab]` or `[T, vocab]`; with `loss`, what it returns.
        """
        if not isinstance(x, Tensor):
            attend = attend or flat_attention(x.lengths, x.tokens.device)
            hidden = self._hidden(x.tokens, x.positions, attend)
            matrix = self.output_matrix()
            return F.linear(hidden, matrix) if loss is None else loss(hidden, matrix, x.labels)
        if cache is not None:
            hidden = self._hidden(x, cache.positions(x, mask), cache)
        else:
            hidden = self._hidden(x, _positions(x, mask), dense_attention(_visible(mask)))
        return F.linear(hidden, self.output_matrix())

    def _hidden(self, tokens: Tensor, positions: Tensor, attend: Attend | Cache) -> Tensor:
        hidden = self.model.embed_tokens(tokens)
        rotation = self.rope(positions, hidden.dtype)
        for index, block in enumerate(self.blocks):
            core = attend if callable(attend) else partial(attend.attend, index)
            hidden = block(hidden, rotation, core)
        normed: Tensor = self.model.norm(hidden)
        return normed


def _positions(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Return positions `[batch, seq]`: from 0 at the first real token of each row."""
    if mask is None or mask.dim() == 3:
        return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def _visible(mask: Tensor | None) -> Tensor | None:
    """Return bool `[batch, query, key]` for a mask of real tokens; a padding query sees itself."""
    if mask is None or mask.dim() == 3:
        return mask
    length = mask.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=mask.device)
    return (causal & mask.unsqueeze(1).bool()) | itself
