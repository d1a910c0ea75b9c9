"""torchao's AdamW with states in 8 bits, and a step of it that needs no compiler on a CPU.

Loads torchao: imported only where the optimizer is built.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from math import nan
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from torchtune.distributed import local_part
from torchtune.errors import ConfigError
from torchtune.training.torchao_import import import_torchao

__all__ = ["AdamW8bit"]

_adam = import_torchao("torchao.optim.adam", what="adamw_8bit", where="optimizer")
_states = import_torchao("torchao.optim.subclass_8bit", what="adamw_8bit", where="optimizer")

_AdamW8bit: Any = _adam.AdamW8bit

_PIECE = 2**19
"""Numbers stepped at a time on a CPU: of all of a matrix, the arithmetic would hold 40 bytes a number."""
_LOW_BITS = 15
"""Of a number in fp32: what is above them tells its code, or two codes with a limit between."""


class AdamW8bit(_AdamW8bit):
    """torchao's AdamW, whose states are `OptimState8bit` where this process has 4,096 numbers or more.

    On a GPU the step is torchao's own, compiled. Elsewhere the same operations run one by one, over
    a piece of a parameter at a time: a CPU would compile for 40 s and be no faster. Weights without
    values (`fake_weights`) get their states and no step.

    A mean of squares that is small beside the largest of its block is rounded to the least number above
    0, and not to 0 as torchao does. Where the mean of gradients is not, a division by 0 and `eps`
    moved single numbers of an embedding by up to 1,700 times the learning rate in a step.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; `amsgrad`, which torchao has no 8-bit states for, is refused.

        Raises:
            ConfigError: E-PARAM-GROUPS.
        """
        if param_group.get("amsgrad"):
            what = "AdamW8bit cannot do amsgrad"
            raise ConfigError("E-PARAM-GROUPS", what, where="param_groups", do="leave it out")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step with the gradients that are there; return what `closure`, if any, returns."""
        groups = self.param_groups
        if any(p.device.type == "cuda" for group in groups for p in group["params"]):
            with warnings.catch_warnings():
                # what its class lacks to keep compiled code from one process to the next
                warnings.filterwarnings("ignore", "OptimState8bit does not implement")
                loss = super().step(closure)
            for parameter in (p for group in groups for p in group["params"] if p in self.state):
                _keep_above_zero(local_part(self.state[parameter]["exp_avg_sq"]))
            return loss
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, parameter.grad, group)
        return loss

    def _step_one(self, parameter: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = self._new_buffer(parameter, True)  # signed
            state["exp_avg_sq"] = self._new_buffer(parameter, False)
        state["step"] += 1
        weights, gradients = local_part(parameter), local_part(gradient).contiguous()
        if isinstance(weights, FakeTensor):
            return
        held = (weights, gradients, state["exp_avg"], state["exp_avg_sq"])
        for weight, its_gradient, *states in zip(*map(_pieces, held), strict=True):
            means = [state.dequantize() if _has_codes(state) else state for state in states]
            _adam.single_param_adam(
                weight, its_gradient, state["step"], *means, None, group["lr"], *group["betas"],
                group["weight_decay"], group["eps"], self.is_adamw, BF16_STOCHASTIC_ROUND=False,
            )  # fmt: skip
            for piece, mean in zip(states, means, strict=True):
                if _has_codes(piece):
                    _round(piece, mean)

    @staticmethod
    def _subclass_zeros(p: Tensor, signed: bool, block_size: int) -> Any:
        """Return a state of zeros like `p`, without values where `p` has none."""
        table = _states.OptimState8bit.zeros((block_size,), signed, block_size, p.device).qmap
        codes = torch.zeros_like(p, dtype=torch.uint8, requires_grad=False)
        scale = p.new_zeros(p.numel() // block_size, dtype=torch.float32, requires_grad=False)
        return _states.OptimState8bit(codes, scale, table, signed, dtype=p.dtype)


def _has_codes(state: Any) -> bool:
    return isinstance(state, _states.OptimState8bit)


def _pieces(tensor: Any) -> Iterable[Any]:
    """Cut a tensor of any shape, plain or in 8 bits, into flat ones that share its memory."""
    tensor = local_part(tensor)
    if not _has_codes(tensor):
        return tensor.view(-1).split(_PIECE)
    codes = tensor.codes.view(-1).split(_PIECE)
    scales = tensor.scale.split(_PIECE // tensor.block_size)
    both = zip(codes, scales, strict=True)
    return [_states.OptimState8bit(*it, tensor.qmap, tensor.signed, tensor.dtype) for it in both]


def _round(state: Any, numbers: Tensor) -> None:
    """Put `numbers`, flat, into `state`, as its own ``copy_`` does; squares stay above 0."""
    scaled, scale = _states.scale_tensor(numbers, state.block_size)
    firsts, nexts = _tables(state.signed, numbers.device)
    places = (scaled.view(torch.int32) >> _LOW_BITS).add_(len(firsts) // 2)
    more = scaled >= nexts.index_select(0, places)
    state.codes.copy_(firsts.index_select(0, places).add_(more))
    state.scale.copy_(scale)
    if not state.signed:
        _keep_above_zero(state)


def _keep_above_zero(state: Any) -> None:
    if _has_codes(state):
        state.codes.clamp_(min=1)


@cache
def _tables(signed: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return what makes codes of fp32 numbers by their upper 17 bits, of shape [131072] each.

    The first is the code of the least number with these bits, the second the number from which on
    the code is one more (a nan where it is not). So few numbers have one code that it never is two.
    torchao searches its table for each number, which takes a CPU fifty times as long.
    """
    numbers = torch.tensor(_states.get_qmap_signed() if signed else _states.get_qmap_unsigned())
    count = 2 ** (32 - _LOW_BITS)
    bits = torch.arange(-count // 2, count // 2, dtype=torch.int32) << _LOW_BITS
    up = torch.where(bits < 0, -1, 1).to(torch.int32)  # numbers below 0 fall as their bits rise
    least = torch.where(bits < 0, bits + 2**_LOW_BITS - 1, bits)

    def codes(steps: Tensor) -> Tensor:
        return _states.quantize_8bit_with_qmap((least + up * steps).view(torch.float32), numbers)

    steps, firsts = torch.zeros_like(bits), codes(torch.zeros_like(bits))
    for half in (2**bit for bit in reversed(range(_LOW_BITS))):  # how far the first code goes
        steps += half * (codes(steps + half) == firsts)
    further = (steps + 1).clamp(max=2**_LOW_BITS - 1)
    nexts = (least + up * further).view(torch.float32)
    nexts = torch.where(codes(further) == firsts, nan, nexts)
    return firsts.to(device), nexts.to(device)
