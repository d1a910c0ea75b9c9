"""One layer over several processes, each with a part of its matrices."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune.distributed.tensor_group import TensorGroup
from torchtune.distributed.tensor_plan import BY_OUTPUT, Cut, check_tensor_plan, cuts_of
from torchtune.distributed.world import World
from torchtune.errors import ConfigError
from torchtune.modules import Attend, Decoder
from torchtune.peft import LoRALinear

__all__ = ["tensor_parallel"]

Model = TypeVar("Model", bound=nn.Module)


def tensor_parallel(model: Model, world: World) -> Model:
    """Cut each layer's matrices over the processes of ``world.mesh["tensor"]`` (Shoeybi et al., 2019).

    The model states how, in its `tensor_plan`, by the last part of a layer's name: a layer is cut by
    ``column`` (its outputs: heads, inner features), by ``row`` (its inputs), or it is a norm whose
    output is gathered for the layers cut by columns (``gather``). ``key heads`` are cut by columns, and
    where there are fewer of them than processes, neighbours keep the layer whole and compute the same
    one. Adapters follow their layers, and embedding and output matrix are cut over the vocabulary.
    Between layers a flat row is cut over its tokens (sequence parallel); ids ``[batch, seq]`` are not,
    and their logits come out whole.

    Parameters keep their names and become DTensors; `in_features` and `out_features` of the layers
    become those of this process's part. The loss is given its part of the output matrix
    and, as `vocabulary`, which part that is (`torchtune.losses.VocabularyShard`). Gradients are those
    of the whole row.

    Args:
        model: A `Decoder`, on the meta device or filled the same on each process; changed in place
            and returned. Call this before `shard`, which cuts each part again.
        world: The processes; with a tensor size of one the model stays as it is. Those of a group
            must be given the same rows, and torch's generator the same seed where an adapter has
            dropout (`World.seed_offset`): they drop the same inputs, those that one process would
            of a row whose length divides.

    Raises:
        ConfigError: E-PARALLEL: the model states no plan, or its sizes do not divide by the tensor
            size.
    """
    if world.tensor_size == 1:
        return model
    assert world.mesh is not None and isinstance(model, Decoder)  # there are several processes
    check_tensor_plan(model, world.tensor_size)
    group = TensorGroup(world.mesh["tensor"])
    for layer, cut in list(cuts_of(model, group.size)):  # each cut is that of the whole layer
        _cut_layer(layer, cut, group)
    embedding = model.model.embed_tokens
    vocabulary = _Vocabulary(group, embedding.num_embeddings)
    embedding.forward = partial(_look_up, embedding, vocabulary)  # type: ignore[method-assign]
    model.forward = _CutForward(model, vocabulary)  # type: ignore[method-assign]
    return model


def _cut_layer(layer: Any, cut: Cut, group: TensorGroup) -> None:
    """Make the layer's parameters DTensors, and let its forward see this process's parts of them."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    for name, parameter in list(layer.named_parameters(recurse=False)):
        dimension = cut.dimensions.get(name)
        placement = Replicate() if dimension is None else Shard(dimension)
        # no source rank: every process cuts its own part, without communication
        whole = parameter.detach()
        part = distribute_tensor(whole, group.mesh, [placement], src_data_rank=None)
        setattr(layer, name, nn.Parameter(part, requires_grad=parameter.requires_grad))
    if cut.style == "vocabulary":
        return
    if cut.style == "column":
        layer.out_features //= group.size // cut.repeats
    elif cut.style == "row":
        layer.in_features //= group.size
        if isinstance(layer, LoRALinear):
            layer.drop = partial(_drop_part, layer.dropout, group)  # type: ignore[method-assign]
    layer.register_forward_pre_hook(partial(_show_parts, cut, group))
    layer.register_forward_hook(_hide_parts, always_call=True)
    if cut.style == "gather":
        layer.register_forward_hook(lambda _module, _inputs, out: group.enter(out))
    elif cut.style == "row":
        layer.register_forward_hook(partial(_leave, group))


def _drop_part(share: float, group: TensorGroup, x: Tensor) -> Tensor:
    """Drop from this process's features `x [*, own]` what is dropped of all processes' features.

    Each draws for all of them: so all stay at the same place in their random numbers, and no two
    features are dropped together.
    """
    whole = (*x.shape[:-1], x.shape[-1] * group.size)
    kept = torch.empty(whole, dtype=torch.bool, device=x.device).bernoulli_(1 - share)
    return x.where(kept.chunk(group.size, -1)[group.rank], 0) / (1 - share)


def _part(layer: nn.Module, name: str, group: TensorGroup, *, summed: bool) -> Tensor:
    """Return this process's part of a parameter; `summed` where each has a part of its gradient."""
    parameter: Any = layer._parameters[name]
    part: Tensor = parameter.to_local()
    return group.sum_gradient(part) if summed else part


def _show_parts(cut: Cut, group: TensorGroup, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    # An attribute of the instance hides the parameter of the same name, which stays registered.
    for name, parameter in layer._parameters.items():
        if parameter is None:
            continue
        if cut.style == "row" and name == "bias":
            layer.__dict__[name] = None  # added once, to the sum
        else:
            summed = name in cut.summed or (cut.style == "gather" and inputs[0].dim() == 2)
            part = _part(layer, name, group, summed=summed)
            if cut.repeats > 1 and name in BY_OUTPUT:
                part = part.chunk(group.size // cut.repeats)[group.rank // cut.repeats]
            layer.__dict__[name] = part


def _hide_parts(layer: nn.Module, *_: Any) -> None:
    for name in layer._parameters:
        layer.__dict__.pop(name, None)


def _leave(group: TensorGroup, layer: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
    total = group.leave(out)
    if layer._parameters.get("bias") is None:
        return total
    return total + _part(layer, "bias", group, summed=total.dim() == 2)


class _Vocabulary:
    """This process's token ids: a `torchtune.losses.VocabularyShard`."""

    def __init__(self, group: TensorGroup, size: int) -> None:
        self.group, self.size = group, size
        self.start = group.rank * -(-size // group.size)  # as torch.chunk cuts

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of every process's `values`."""
        return self.group.reduce(values, "sum")

    def max(self, values: Tensor) -> Tensor:
        """Return the largest of every process's `values`."""
        return self.group.reduce(values, "max")


def _look_up(embedding: nn.Embedding, vocabulary: _Vocabulary, tokens: Tensor) -> Tensor:
    own = tokens - vocabulary.start
    held = (own >= 0) & (own < len(embedding.weight))
    found = F.embedding(own.where(held, 0), embedding.weight)
    return vocabulary.group.leave(found.masked_fill(~held.unsqueeze(-1), 0))


class _CutForward:
    """The forward of a model whose vocabulary is cut, and whose rows are."""

    def __init__(self, model: Decoder, vocabulary: _Vocabulary) -> None:
        self.forward = model.forward
        self.vocabulary, self.group = vocabulary, vocabulary.group
        self.ends = [
            (end, cut) for end, cut in cuts_of(model, self.group.size) if cut.style == "vocabulary"
        ]

    def __call__(
        self, x: Any, *, loss: Any = None, attend: Attend | None = None, **others: Any
    ) -> Tensor:
        """Return what the whole model returns; the loss sees its part of the output matrix."""
        from torchtune.data import pad_batch  # late: brings the tokenizers

        with self._shown_ends():
            if isinstance(x, Tensor):
                return self._whole(self.forward(x, **others))
            row = pad_batch(x, self.group.size)
            if attend is not None and row is not x:
                attend = _without_tail(attend, len(x.tokens))
            if loss is None:
                return self._whole(self.forward(row, attend=attend))[: len(x.tokens)]
            return self.forward(row, loss=self._of_part(loss), attend=attend)

    def _whole(self, logits: Tensor) -> Tensor:
        return self.group.join_columns(logits, self.vocabulary.size)

    def _of_part(self, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if "vocabulary" in signature(loss).parameters:
            return partial(loss, vocabulary=self.vocabulary)
        name = getattr(loss, "__name__", type(loss).__name__)
        raise ConfigError(
            "E-PARALLEL", f"the loss {name} cannot be computed with the vocabulary cut over processes",
            where="loss", do="use linear_cross_entropy, or parallel.tensor=1",
        )  # fmt: skip

    @contextmanager
    def _shown_ends(self) -> Iterator[None]:
        """Let embedding and head show this process's parts; each serves the forward as one tensor."""
        for end, cut in self.ends:
            _show_parts(cut, self.group, end, ())
        try:
            yield
        finally:
            for end, _ in self.ends:
                _hide_parts(end)


def _without_tail(attend: Attend, tokens: int) -> Attend:
    """Return `attend` for a row with a tail, which it is not told of and which attends to nothing."""

    def attend_to_row(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = attend(q[:tokens], k[:tokens], v[:tokens])
        return F.pad(out, (0, 0, 0, 0, 0, len(q) - tokens))

    return attend_to_row
