"""Weights that have a size and no values, so that a model of any size runs anywhere."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["ASKS_DEVICE", "fake_weights", "wraps_others"]

ASKS_DEVICE = torch.ops.prim.device.default
"""Where a tensor lies, which code asks more often than it computes."""

_ATEN = torch.ops.aten
_UNFILLED = {
    _ATEN.empty.memory_format, _ATEN.empty_strided.default, _ATEN.empty_like.default,
    _ATEN.new_empty.default, _ATEN.new_empty_strided.default,
}  # fmt: skip
"""What makes memory without values: a model's, before its weights are read, and FSDP's buffers."""
_INDICES = {torch.int64, torch.int32, torch.bool}
_TAKES_MASKS = {
    _ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default,
    _ATEN._index_put_impl_.default, _ATEN.masked_select.default, _ATEN.nonzero.default,
}  # fmt: skip
"""What may make a shape of truth values."""


@contextmanager
def fake_weights() -> Iterator[None]:
    """Let what ``to_empty`` makes of a meta model have no memory, nor what is computed from it.

    What depends on such weights has a shape and a dtype, and a number asked of it is 1, or True: a
    mask made of it takes all there is. What does not, such as where documents end, is computed as
    always: code whose shapes hang on such values runs unchanged.
    """
    with _FakeWeights():
        yield


def wraps_others(types: Sequence[type]) -> bool:
    """Say whether an operation on `types` is yet to be taken apart into those on the tensors inside."""
    from torch._subclasses.fake_tensor import FakeTensor

    return any(kind not in (Tensor, nn.Parameter, FakeTensor) for kind in types)


class _FakeWeights(TorchDispatchMode):
    def __init__(self) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        super().__init__()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        from torch._guards import detect_fake_mode
        from torch._subclasses.fake_tensor import FakeTensor

        kwargs = kwargs or {}
        if func is ASKS_DEVICE:
            return func(*args, **kwargs)
        if wraps_others(types):
            return NotImplemented
        if func is _ATEN._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0
        if func in _TAKES_MASKS:
            return _by_places(func, args, kwargs)
        # detect_fake_mode: DTensor asks for shapes in a fake mode of its own, which comes after this
        if func in _UNFILLED and FakeTensor not in types and detect_fake_mode() is None:
            return self._unfilled(func, args, kwargs)
        return func(*args, **kwargs)

    def _unfilled(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        like = args[0].device if isinstance(args[0], Tensor) else torch.device("cpu")
        device = kwargs.get("device") or like
        made: Tensor = func(*args, **{**kwargs, "device": "meta", "pin_memory": None})
        if device.type == "meta":
            return made
        if made.dtype in _INDICES:
            return func(*args, **kwargs)
        with self._fake:
            return torch.empty_strided(made.shape, made.stride(), dtype=made.dtype, device=device)


def _by_places(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run an operation with the places of true values instead of the values."""
    if func is _ATEN.nonzero.default:
        return _true_places(args[0])
    if func is _ATEN.masked_select.default:
        shape = torch.broadcast_shapes(*(tensor.shape for tensor in args))
        return args[0].expand(shape)[_true_places(args[1].expand(shape)).unbind(1)]
    return func(args[0], _without_masks(args[1]), *args[2:], **kwargs)


def _without_masks(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Put the places of its true values where a mask is, as the shape of what it takes hangs on them."""
    places = list[Tensor | None]()
    for index in indices:
        if index is not None and index.dtype == torch.bool:
            places += _true_places(index).unbind(1)
        else:
            places.append(index)
    return places


def _true_places(mask: Tensor) -> Tensor:
    """Return the places `[count, dimensions]` of what is not 0, which without values is everything."""
    from torch._subclasses.fake_tensor import FakeTensor

    known = torch.ones(mask.shape, dtype=torch.bool) if isinstance(mask, FakeTensor) else mask
    return known.nonzero()
