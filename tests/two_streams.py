"""A device of two streams, played on the CPU, where each copy comes at the worst moment allowed."""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchtune.modules.kernels import as_if_on
from torchtune.training.fake_weights import wraps_others

__all__ = ["TwoStreams"]

ATEN = torch.ops.aten
UNFILLED = {ATEN.empty_like.default, ATEN.empty.memory_format, ATEN.empty_strided.default}


@dataclass
class Place:
    """Where a tensor lies; it does not keep the memory."""

    storage: weakref.ref
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    on_host: bool
    died: int | None = None

    @property
    def tensor(self) -> Tensor | None:
        storage = self.storage()
        if storage is None:
            return None
        return torch.empty(0, dtype=self.dtype).set_(storage, self.offset, self.shape, self.stride)


@dataclass
class Copy:
    to: Place
    source: Place
    stream: Any
    asked: int
    early: bool
    held: list[Tensor]


class TwoStreams(TorchDispatchMode):
    """Runs what computes at once, and each copy of the other stream when it does most harm.

    A copy is as late as the waits allow. By then memory of a tensor that is gone is another's: a source
    gives NaN, and a destination spoils a tensor made since. A copy that waits for too little of what
    computes gives NaN too, as it might have come before its source, or into memory still read. New
    memory holds NaN. Pinned memory alone is safe: torch waits before it gives it out again.

    `most_near` is how many tensors of copies were on the device at a time, `pinned` how many are on
    the host now, and `gaps` how many operations computed between asking for a copy and waiting for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most_near, self.gaps = 0, []
        self._clock = 0
        self._on: Any = None
        self._waited: dict[Any, int] = {}
        self._late: list[Copy] = []
        self._changed: dict[int, int] = {}
        self._made: list[tuple[int, weakref.ref, int]] = []
        self._near: dict[int, weakref.ref] = {}
        self._pinned: set[int] = set()

    @property
    def pinned(self) -> int:
        return len(self._pinned)

    def __enter__(self) -> "TwoStreams":
        self._undo = ExitStack()
        self._undo.enter_context(as_if_on("cuda"))
        self._undo.enter_context(patch.object(torch.cpu, "stream", self._stream))
        wait = lambda waiting, other: self._wait(waiting, other)  # noqa: E731
        self._undo.enter_context(patch.object(torch.cpu.Stream, "wait_stream", wait))
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._undo.close()

    @contextmanager
    def _stream(self, stream: Any) -> Iterator[None]:
        before, self._on = self._on, stream
        try:
            yield
        finally:
            self._on = before

    def _wait(self, waiting: Any, other: Any) -> None:
        self._waited[waiting] = self._clock
        if waiting is torch.cpu.current_stream():
            late, self._late = self._late, []
            for copy in late:
                self._do(copy) if copy.stream is other else self._late.append(copy)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if wraps_others(types):
            return NotImplemented
        kwargs = dict(kwargs or {})
        if func is ATEN.copy_.default and self._travels(*args[:2]):
            self._ask(*args[:2])
            return args[0]
        pinned = kwargs.pop("pin_memory", False)
        result = func(*args, **kwargs)
        self._clock += 1
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor, pinned, func._schema.is_mutable)
        if func in UNFILLED and result.is_floating_point():
            result.fill_(torch.nan)
        return result

    def _travels(self, *tensors: Tensor) -> bool:
        keys = {tensor.untyped_storage()._cdata for tensor in tensors}
        return self._on is not None and not self._pinned.isdisjoint(keys)

    def _note(self, tensor: Tensor, pinned: bool, changed: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._changed:
            weakref.finalize(storage, self._forget, key).atexit = False
            self._made.append((self._clock, weakref.ref(storage), storage.nbytes()))
            changed = True
        if pinned:
            self._pinned.add(key)
        if changed:
            self._changed[key] = self._clock

    def _forget(self, key: int) -> None:
        self._changed.pop(key, None)
        self._near.pop(key, None)
        self._pinned.discard(key)

    def _place(self, tensor: Tensor) -> Place:
        storage = tensor.untyped_storage()
        place = Place(
            weakref.ref(storage), tensor.shape, tensor.stride(), tensor.storage_offset(),
            tensor.dtype, storage._cdata in self._pinned,
        )  # fmt: skip
        if not place.on_host:
            self._near[storage._cdata] = place.storage
            self.most_near = max(self.most_near, len(self._near))
            weakref.finalize(storage, self._die, place).atexit = False
        return place

    def _die(self, place: Place) -> None:
        place.died = self._clock

    def _ask(self, to: Tensor, source: Tensor) -> None:
        both = [self._place(to), self._place(source)]
        keys = [x.untyped_storage()._cdata for x in (to, source)]
        near = [key for key, place in zip(keys, both, strict=True) if not place.on_host]
        early = any(self._changed.get(key, 0) > self._waited.get(self._on, 0) for key in near)
        held = [x for x, place in zip((to, source), both, strict=True) if place.on_host]
        self._late.append(Copy(*both, self._on, self._clock, early, held))

    def _do(self, copy: Copy) -> None:
        self.gaps.append(self._clock - copy.asked)
        source, to = copy.source.tensor, copy.to.tensor
        if to is None:
            to = self._heir(copy.to)
            source = None
        if to is not None:
            to.fill_(torch.nan) if source is None or copy.early else to.copy_(source)

    def _heir(self, place: Place) -> Tensor | None:
        """Return a tensor that may have got the memory of one that is gone."""
        size = place.shape.numel() * place.dtype.itemsize
        for made, ref, nbytes in self._made:
            if (storage := ref()) is not None and made > place.died and nbytes == size:
                shape = [size // place.dtype.itemsize]
                return torch.empty(0, dtype=place.dtype).set_(storage, 0, shape, [1])
        return None
