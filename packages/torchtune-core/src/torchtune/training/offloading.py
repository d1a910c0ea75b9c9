"""Blocks' inputs in the host's memory between forward and backward, copied while a GPU computes."""

import weakref
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from torchtune.modules.kernels import kernels_of
from torchtune.training.activations import Model

__all__ = ["offload_activations"]


def offload_activations(model: Model) -> Model:
    """Keep each block's input but the last one's in the host's memory until backward wants it.

    For `checkpoint_activations`, to be called before this, the input is all that a block keeps, so
    that a GPU holds one block's activations and two inputs at a time. What `keep_products` keeps stays
    there. Host memory is pinned, and a stream of its own copies each input: to the host while its
    block computes, and back while backward is at the block after. The last block's stays, as
    backward begins with it. Without a CUDA device nothing changes.

    Args:
        model: Changed in place and returned.

    Raises:
        RuntimeError: In forward, where a block changes its input in place while that is copied.
    """
    inputs = _Inputs()
    for block in model.blocks:
        last = block is model.blocks[-1]
        block.forward = partial(inputs.run, block.forward, last)
    return model


class _Transfers:
    """Copies between a device and the host, beside what the device computes.

    One stream computes and one copies. Each works in order, but not after the other unless it waits;
    memory of the device is given out again in the order of the one that computes. So two rules make a
    copy safe, without ``record_stream``, which would hold memory for longer:

    - It waits for all that was asked of the computing stream before. What it reads is then written,
      and what it writes to is in nobody's use.
    - Its tensors are held until the computing stream waits for it (`settle`). Whoever is given their
      memory later computes later.

    Pinned memory torch itself gives out again only after the copies that used it.

    Args:
        device: What computes; `of` keeps one of these for each, as a copy that is under way may
            outlive the model that asked for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams: Any = torch.get_device_module(device)
        self._copying = self._streams.Stream(device)
        self._under_way: list[tuple[Tensor, Tensor, int]] = []

    @classmethod
    @cache
    def of(cls, device: torch.device) -> "_Transfers":
        """Return those of `device`, which is kept."""
        return cls(device)

    def to_host(self, tensor: Tensor) -> Tensor:
        """Return pinned memory into which `tensor` is being copied."""
        host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        self._copy(host, tensor)
        return host

    def to_device(self, host: Tensor) -> Tensor:
        """Return memory of the device into which `host` is being copied: `settle` before use."""
        tensor = torch.empty_like(host, device=self._device)
        self._copy(tensor, host)
        return tensor

    def settle(self) -> None:
        """Let what is computed from now on come after the copies begun so far.

        Raises:
            RuntimeError: The source of one was changed in place meanwhile.
        """
        if not self._under_way:
            return
        self._streams.current_stream(self._device).wait_stream(self._copying)
        copied, self._under_way = self._under_way, []
        if any(source._version != version for _, source, version in copied):
            raise RuntimeError(
                "a block changed its input in place while it was copied to the host's memory; "
                "compute out of place, or set enable_activation_offloading=false"
            )

    def _copy(self, to: Tensor, source: Tensor) -> None:
        self._copying.wait_stream(self._streams.current_stream(self._device))
        with self._streams.stream(self._copying):
            to.copy_(source, non_blocking=True)
        self._under_way.append((to, source, source._version))


class _Input:
    """A block's input for backward: on the host, on the device while that may be, or both."""

    def __init__(
        self,
        tensor: Tensor,
        transfers: _Transfers,
        earlier: Callable[[], "_Input | None"],
        *,
        stays: bool,
    ) -> None:
        self._transfers, self._earlier = transfers, earlier
        self._near = tensor if stays else None
        self._host = None if stays else transfers.to_host(tensor)

    def take(self) -> Tensor:
        """Return the input for what is computed next, and let the one before it come."""
        tensor = self._bring()
        self._transfers.settle()
        if self._host is not None:
            self._near = None  # backward holds it as long as it wants
        earlier = self._earlier()
        if earlier is not None:
            earlier._bring()
        return tensor

    def _bring(self) -> Tensor:
        if self._near is None:
            assert self._host is not None
            self._near = self._transfers.to_device(self._host)
        return self._near


class _Inputs:
    """The inputs of a model's blocks, in the order in which forward came to them."""

    def __init__(self) -> None:
        self._newest: Callable[[], _Input | None] = lambda: None  # weak: the graph alone holds them

    def run(self, forward: Callable[..., Tensor], last: bool, hidden: Tensor, *args: Any) -> Tensor:
        """Return `forward(hidden, *args)`, which saves `hidden` as this class does."""
        if kernels_of(hidden.device) != "cuda":
            return forward(hidden, *args)
        transfers = _Transfers.of(hidden.device)
        transfers.settle()  # the block before this one has computed meanwhile
        pack = partial(self._pack, transfers, last, hidden.untyped_storage()._cdata)
        with saved_tensors_hooks(pack, _unpack):
            return forward(hidden, *args)

    def _pack(
        self, transfers: _Transfers, last: bool, storage: int, tensor: Tensor
    ) -> "_Input | Tensor":
        if tensor.untyped_storage()._cdata != storage:
            return tensor.detach()
        kept = _Input(tensor.detach(), transfers, self._newest, stays=last)
        self._newest = weakref.ref(kept)
        return kept


def _unpack(kept: _Input | Tensor) -> Tensor:
    return kept.take() if isinstance(kept, _Input) else kept
