"""One flat row over several processes: each has a part of its tokens, and in attention of its heads."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from torchtune.distributed.world import World
from torchtune.errors import ConfigError
from torchtune.modules import Attend, flat_attention

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from torchtune.data import Batch

__all__ = ["context_parallel"]

Model = TypeVar("Model", bound=nn.Module)


def context_parallel(model: Model, world: World) -> Model:
    """Cut each flat row over the processes of ``world.mesh["context"]``, for rows too long for one.

    A process computes all but attention for its part of the row, and attention for its part of the
    heads over the whole row: two all-to-all exchanges a block and pass (Jacobs et al., 2023, DeepSpeed
    Ulysses). Documents stay apart, as the row's lengths are those of the whole row. Fewer key and
    value heads than processes are repeated. A row whose length does not divide gets a tail that trains
    nothing. Each process of the group must be given the same row.

    With `loss` the forward returns the whole row's sum on every process, with the gradients of its own
    part: what FSDP adds up over ``data_shard`` and ``context`` is the whole. Without `loss`, with an
    `attend` of one's own, and for ids ``[batch, seq]`` nothing is cut, and every process computes all.

    Args:
        model: A `Decoder`; changed in place and returned. Before it is compiled, checkpointed and
            sharded, and after `tensor_parallel`, which then cuts a process's part of the row again.
        world: The processes; with a context size of one the model stays as it is.

    Raises:
        ConfigError: E-PARALLEL: the heads of a process do not divide by the context size.
    """
    if world.context_size == 1:
        return model
    _check_heads(model, world)
    model.forward = _RowForward(model.forward, world)
    return model


def _check_heads(model: Any, world: World) -> None:
    heads = model.hf_config["num_attention_heads"]
    own = heads // world.tensor_size
    if own % world.context_size == 0:
        return
    fitting = ", ".join(str(n) for n in range(1, own + 1) if own % n == 0)
    shared = f" of a process ({heads} over tensor={world.tensor_size})"
    raise ConfigError(
        "E-PARALLEL",
        f"the {own} attention heads{shared if world.tensor_size > 1 else ''} "
        f"do not divide by {world.context_size}",
        where="parallel.context",
        do=f"sizes that divide: {fitting}",
    )


class _RowForward:
    """The forward of a model that takes this process's part of a row."""

    def __init__(self, forward: Callable[..., Tensor], world: World) -> None:
        assert world.mesh is not None  # there are several processes
        self.forward = forward
        self.group = world.mesh.get_group("context")
        self.rank, self.size = world.mesh.get_local_rank("context"), world.context_size
        self.multiple = world.context_size * world.tensor_size

    def __call__(
        self, x: Any, *, loss: Any = None, attend: Attend | None = None, **others: Any
    ) -> Tensor:
        if isinstance(x, Tensor) or loss is None or attend is not None:
            out = self.forward(x, loss=loss, attend=attend, **others)
            return _scale_gradient(out, 1 / self.size)
        from torchtune.data import pad_batch  # late: brings the tokenizers

        row = pad_batch(x, self.multiple)
        whole = flat_attention(row.lengths, row.tokens.device)
        exchanged = _HeadsForSequence(whole, self.group, self.size)
        part = self.forward(self._part(row), loss=loss, attend=exchanged, **others)
        total: Tensor = _Sum.apply(part, self.group)
        return total

    def _part(self, row: "Batch") -> "Batch":
        """Return this process's tokens; who sees whom is not in their lengths any more."""
        length = len(row.tokens) // self.size
        span = slice(self.rank * length, (self.rank + 1) * length)
        tokens, labels, positions = row.tokens[span], row.labels[span], row.positions[span]
        return replace(row, tokens=tokens, labels=labels, positions=positions, lengths=(length,))


class _HeadsForSequence:
    """Attention for a part of the row: all of the row comes for a part of the heads, and goes back."""

    def __init__(self, attend: Attend, group: "ProcessGroup", size: int) -> None:
        self.attend = attend
        self.group = group
        self.size = size
        self.outside = _outside_of_graphs()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return `[part, heads, head_dim]` for `q` of that shape and `k`, `v [part, kv_heads, head_dim]`."""
        return self.outside(self, q, k, v)


@cache
def _outside_of_graphs() -> Callable[[_HeadsForSequence, Tensor, Tensor, Tensor], Tensor]:
    """Keep collectives out of compiled graphs: processes must come to them in one order."""
    kept_out: Callable[[_HeadsForSequence, Tensor, Tensor, Tensor], Tensor]
    kept_out = torch.compiler.disable(_exchanged)  # loads the compiler, and so not on import
    return kept_out


def _exchanged(row: _HeadsForSequence, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    repeats = math.lcm(k.shape[1], row.size) // k.shape[1]
    if repeats > 1:
        k, v = (x.repeat_interleave(repeats, dim=1) for x in (k, v))
    parts = [x.unflatten(1, (row.size, -1)) for x in (q, k, v)]
    heads = [part.shape[2] for part in parts]
    sent = torch.cat(parts, 2).transpose(0, 1)  # [process, part, its heads of q, k and v, head_dim]
    received = _exchange(sent, row.group).flatten(0, 1)
    out = row.attend(*received.split(heads, 1))
    returned = _exchange(out.unflatten(0, (row.size, -1)), row.group)
    return returned.transpose(0, 1).flatten(1, 2)


def _exchange(x: Tensor, group: "ProcessGroup") -> Tensor:
    out: Tensor = _AllToAll.apply(x.contiguous(), group)
    return out


class _AllToAll(torch.autograd.Function):
    """Send ``x[i]`` to process i; what comes from it is ``out[i]``. Its own transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: "ProcessGroup") -> Tensor:
        import torch.distributed as dist

        ctx.group = group
        out = torch.empty_like(x)
        dist.all_to_all_single(out, x, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _exchange(grad, ctx.group), None


class _Sum(torch.autograd.Function):
    """The sum over a group, with the gradient of this process's part alone."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: "ProcessGroup") -> Tensor:
        import torch.distributed as dist

        total = part.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return `x` with a gradient so much smaller: each of the processes that computed it adds one."""
    out: Tensor = _Scaled.apply(x, factor)
    return out
