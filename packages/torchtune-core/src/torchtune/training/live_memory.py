"""Counting what torch's tensors hold as they come and go."""

import math
import sys
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchtune.distributed import local_part
from torchtune.modules.kernels import kernels_of
from torchtune.training.fake_weights import ASKS_DEVICE, wraps_others

__all__ = ["PARTS", "LiveMemory"]

PARTS = ("weights", "gradients", "optimizer", "activations", "loss", "communication")
"""What memory is counted under."""

_SENDING = {"c10d", "_c10d_functional", "_c10d_functional_autograd", "fsdp"}
"""Families of operations whose results are buffers of what goes between processes."""

_STAGED = ("allgather", "all_gather", "reduce_scatter")
"""What gloo does on a copy of its largest tensor: a gathering's result, or what is added up."""
_NOWHERE = 0
"""The place of what no tensor of Python's lies in."""


@dataclass
class _Held:
    """A storage's size for as long as it had it; times are counts of what happened."""

    size: int
    part: str
    born: int
    died: float = math.inf

    @property
    def changes(self) -> tuple[tuple[float, int], tuple[float, int]]:
        """What it adds to the sum, and when."""
        return (self.born, self.size), (self.died, -self.size)


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all storages that torch makes while this is entered, by part.

    A storage's part is that of the phase in which it is made, until it turns out to be a weight, a
    gradient or an optimizer's state. What a kernel makes and frees inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self._phase = "activations"
        self._held: list[_Held] = []
        self._alive: dict[int, _Held] = {}
        self._clock = self._start = 0

    def __enter__(self) -> "LiveMemory":
        """Begin to count."""
        self._undo = [
            register_optimizer_step_pre_hook(lambda *_: self._enter_phase("optimizer")),
            register_optimizer_step_post_hook(self._after_optimizer),
        ]
        self._resize = torch.UntypedStorage.resize_
        torch.UntypedStorage.resize_ = self._resizing  # type: ignore[method-assign]
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        """Stop to count."""
        super().__exit__(*raised)
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        for handle in self._undo:
            handle.remove()

    def start(self) -> None:
        """Ask from now on for the fullest moment; what is alive now counts, what came before does not."""
        self._start = self._clock

    def peak(self, *, without: Collection[str] = ()) -> dict[str, int]:
        """Return the bytes of each part at the moment when all together were the most.

        Args:
            without: Parts that lie in another memory and are not asked for.
        """
        kept = [h for h in self._held if h.part not in without and h.died > self._start]
        changes = sorted(change for held in kept for change in held.changes)
        totals = list(accumulate(change for _, change in changes))
        fullest = changes[totals.index(max(totals))][0] if changes else 0
        found = dict.fromkeys(PARTS, 0)
        for held in kept:
            if held.born <= fullest < held.died:
                found[held.part] += held.size
        return found

    def most(self) -> dict[str, int]:
        """Return the bytes of each part when that part was the most."""
        found = {}
        for part in (*PARTS, "host"):
            held = [h for h in self._held if h.part == part and h.died > self._start]
            changes = sorted(change for h in held for change in h.changes)
            found[part] = max(accumulate(change for _, change in changes), default=0)
        return found

    def watch(self, model: nn.Module) -> None:
        """Tell apart what belongs to `model`: weights, gradients, and what comes after its blocks.

        Args:
            model: Has ``blocks``; call this before the optimizer is made.
        """
        self._assign("weights", [*model.parameters(), *model.buffers()])
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._is_gradient)
        blocks: Any = model.blocks
        blocks[-1].register_forward_hook(lambda *_: self._enter_phase("loss"))
        model.register_forward_hook(lambda *_: self._enter_phase("activations"))

    def _enter_phase(self, part: str) -> None:
        self._phase = part

    def _is_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._assign("gradients", [parameter.grad])

    def _after_optimizer(self, optimizer: Optimizer, *_: Any) -> None:
        states = [value for state in optimizer.state.values() for value in state.values()]
        self._assign("optimizer", [value for value in states if isinstance(value, Tensor)])
        self._enter_phase("activations")

    def _assign(self, part: str, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            held = self._alive.get(local_part(tensor).untyped_storage()._cdata)
            if held is not None:
                held.part = part

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation and count what it made."""
        from torch._guards import detect_fake_mode

        kwargs = kwargs or {}
        if func is ASKS_DEVICE:
            return func(*args, **kwargs)
        if wraps_others(types):
            return NotImplemented
        result = func(*args, **kwargs)
        if detect_fake_mode() is not None:  # DTensor asks what shape a result has: nothing is made
            return result
        part = "communication" if func.namespace in _SENDING else self._phase
        if kwargs.get("pin_memory"):
            part = "host"
        if func is torch.ops.aten._to_copy.default and self._part_of(args[0]) == "weights":
            part = "weights"  # a copy to compute with
        if func is torch.ops.aten.add.Tensor and _adds_gradients():
            self._write_over(args[0], result)
        for tensor in _tensors(result):
            self._count(tensor, part)
        if part == "communication":
            self._mark_written(func, args, kwargs)
            self._stage(func, (args, result))
        return result

    def _part_of(self, tensor: Tensor) -> str | None:
        held = self._alive.get(tensor.untyped_storage()._cdata)
        return held.part if held else None

    def _mark_written(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        for place, argument in enumerate(func._schema.arguments):
            written = argument.alias_info is not None and argument.alias_info.is_write
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            for tensor in _tensors(value) if written else ():
                held = self._alive.get(tensor.untyped_storage()._cdata)
                if held is not None and held.part == "activations":
                    held.part = "communication"

    def _stage(self, func: Any, values: Any) -> None:
        """Count what gloo copies aside while it sends; NCCL works in place."""
        tensors = list(_tensors(values))
        staged = any(word in func.__name__ for word in _STAGED)
        if staged and kernels_of(tensors[0].device) == "cpu":
            size = max(tensor.nbytes for tensor in tensors)
            self._begin(_NOWHERE, size, "communication")
            self._end(_NOWHERE)

    def _write_over(self, old: Tensor, new: Tensor) -> None:
        """Take `new` to lie where `old` was: with values backward adds up gradients in place."""
        held = self._alive.pop(old.untyped_storage()._cdata, None)
        if held is not None:
            storage = new.untyped_storage()
            self._alive[storage._cdata] = held
            weakref.finalize(storage, self._end, storage._cdata).atexit = False

    def _count(self, tensor: Tensor, part: str) -> None:
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._alive:
            self._begin(key, storage.nbytes(), part)
            weakref.finalize(storage, self._end, key).atexit = False

    def _begin(self, key: int, size: int, part: str) -> None:
        self._clock += 1
        self._alive[key] = _Held(size, part, self._clock)
        self._held.append(self._alive[key])

    def _end(self, key: int) -> str:
        self._clock += 1
        held = self._alive.pop(key, None)
        if held is None:  # written over
            return ""
        held.died = self._clock
        return held.part

    @property
    def _resizing(self) -> Callable[..., Any]:
        """FSDP frees and fills its buffers by resizing them, which is no operation."""
        resize, memory = self._resize, self

        def resize_(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            if storage._cdata in memory._alive:
                memory._begin(storage._cdata, size, memory._end(storage._cdata))
            return result

        return resize_


def _adds_gradients() -> bool:
    """Whether the operation at hand is backward's own, and not one of a function that it calls."""
    frame = sys._getframe(1).f_back
    while frame is not None and "/torch/_" in frame.f_code.co_filename.replace("\\", "/"):
        frame = frame.f_back  # torch's own wrappers of a dispatch mode
    return frame is not None and frame.f_code.co_name == "_engine_run_backward"


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
