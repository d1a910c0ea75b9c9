"""An optimizer's states in 8 bits in safetensors files, and back in any world.

torchao keeps what a process has of a state, where that is large enough, as a code of a byte for each
number, a scale for each block of numbers in a row, and a table from code to number. The codes of all
processes are parts of one tensor. Scales belong to one process's box, whose place is in their name::

    state/NAME/exp_avg/codes            all boxes, which make up the parameter's shape
    state/NAME/exp_avg/scales/128-0     of the box that begins at row 128, column 0
    state/NAME/exp_avg/table/128-0
    state/NAME/exp_avg                  boxes that are too small for codes
"""

from collections.abc import Mapping, Sequence
from math import nan, prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from torchtune.checkpoint.boxes import common_box, slices, within
from torchtune.checkpoint.tensor_reading import Piece, check_found, read_into
from torchtune.checkpoint.weights import Weights, pieces_of
from torchtune.errors import TuneError

if TYPE_CHECKING:
    from torchtune.distributed import Part, World

__all__ = ["own_parts", "read_state"]

_CODES, _SCALES, _TABLE = "{}/codes", "{}/scales/{}", "{}/table/{}"
_SIGNED = "/exp_avg"  # the other states are means of squares


def own_parts(tensors: Mapping[str, Tensor], world: "World") -> dict[str, tuple[Tensor, "Part"]]:
    """Return what this rank holds of `tensors`, and no rank before it does: plain tensors and their boxes.

    Args:
        tensors: By name; plain or distributed, in 8 bits or not.
        world: The processes.

    Raises:
        TuneError: E-STATE: a tensor is of another kind, of which the parts are not known.
    """
    from torchtune.distributed import is_first_copy, local_part, part_of

    found: dict[str, tuple[Tensor, Part]] = {}
    for name, tensor in tensors.items():
        part = part_of(tensor)
        if prod(part.sizes) and is_first_copy(tensor, world):
            found |= _plain_parts(name, local_part(tensor), part)
    return found


def _plain_parts(name: str, local: Any, part: "Part") -> dict[str, tuple[Tensor, "Part"]]:
    if not _has_codes(local):
        if not is_traceable_wrapper_subclass(local):
            return {name: (local, part)}
        what = f"cannot save {name}: a {type(local).__name__} is no plain tensor, nor in 8 bits"
        raise TuneError("E-STATE", what, where="optimizer", do="use adamw or adamw_8bit")
    place = _place(part)
    return {
        _CODES.format(name): (local.codes, part),
        _SCALES.format(name, place): (local.scale, _whole(local.scale)),
        _TABLE.format(name, place): (local.qmap, _whole(local.qmap)),
    }


@torch.no_grad()
def read_state(
    tensors: Weights, name: str, parameter: Tensor, optimizer: torch.optim.Optimizer
) -> Tensor | None:
    """Return the state `name` of `parameter` in the form in which `optimizer` keeps this rank's box.

    Codes and scales come back as they are where the box is one that was saved, and in each block
    whose numbers were one block then. Other blocks are taken apart and rounded anew.

    Args:
        tensors: The files of all ranks that saved.
        name: As it was saved.
        parameter: Plain or distributed.
        optimizer: Any.

    Returns:
        The state; None for an optimizer that is not of torchao, and what has not the parameter's
        shape, such as a count of steps.

    Raises:
        MissingError: E-TENSOR-MISSING, E-FILE-TRUNCATED.
    """
    make: Any = getattr(optimizer, "_new_buffer", None)
    if make is None:
        return None
    coded, plain = pieces_of(_CODES.format(name), tensors), pieces_of(name, tensors)
    if not parameter.dim() or not (coded or tensors.shape(name) == tuple(parameter.shape)):
        return None
    state: Tensor = make(parameter, name.endswith(_SIGNED))
    _fill(state, _Saved(tensors, name, coded, plain))
    return state


class _Saved(NamedTuple):
    """Where a state lies: boxes with codes, and plain ones."""

    tensors: Weights
    name: str
    coded: Sequence[Piece]
    plain: Sequence[Piece]

    def scales(self, piece: Piece) -> Tensor:
        return self.tensors[_SCALES.format(self.name, _place(piece.box))]

    def table(self, piece: Piece) -> Tensor:
        return self.tensors[_TABLE.format(self.name, _place(piece.box))]


def _fill(state: Tensor, saved: _Saved) -> None:
    from torchtune.distributed import local_part, part_of

    local: Any = local_part(state)
    part = part_of(state)
    table = local.qmap.cpu() if _has_codes(local) else None
    same = next((piece for piece in saved.coded if piece.box == part), None)
    if same is None or table is None or not torch.equal(saved.table(same), table):
        _assemble(local, part, table, saved)
    else:
        read_into([same], part, local.codes)
        local.scale.copy_(saved.scales(same))


def _assemble(local: Any, part: "Part", table: Tensor | None, saved: _Saved) -> None:
    """Fill `local` from all boxes that it overlaps, keeping the codes of whole blocks."""
    values, codes = torch.empty(part.sizes), torch.zeros(part.sizes, dtype=torch.uint8)
    scales = torch.full(part.sizes, nan)
    found = read_into(saved.plain, part, values)
    for piece in saved.coded:
        box = common_box(part, piece.box)
        if not prod(box.sizes):
            continue
        here, there = slices(within(box, part)), slices(within(box, piece.box))
        numbers = torch.empty(box.sizes, dtype=torch.uint8)
        found += read_into([piece], box, numbers)
        scale, names = _spread(saved.scales(piece), piece.sizes)[there], saved.table(piece)
        values[here] = names[numbers.int()] * scale
        if table is not None and torch.equal(names, table):
            codes[here], scales[here] = numbers, scale
    check_found(found, part, saved.name, [*saved.plain, *saved.coded])
    if table is None:
        local.copy_(values)
    else:
        _round(local, values.to(local.device), codes, scales)


def _round(local: Any, values: Tensor, codes: Tensor, scales: Tensor) -> None:
    """Put `values` into `local`, those of a block with a single scale (nan is none) as their `codes`."""
    blocks = scales.view(-1, local.block_size).to(local.device)
    kept = (blocks == blocks[:, :1]).all(1)
    if not kept.all():
        local.copy_(values)
        if not local.signed:
            local.codes.clamp_(min=1)  # squares stay above 0, as adamw_8bit keeps them
    local.codes.view_as(blocks)[kept] = codes.view_as(blocks).to(local.device)[kept]
    local.scale[kept] = blocks[kept, 0]


def _spread(scales: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Return the scale of each number of a box."""
    return scales.repeat_interleave(prod(sizes) // len(scales)).view(sizes)


def _has_codes(local: Any) -> bool:
    codes = getattr(local, "codes", None)
    return codes is not None and hasattr(local, "qmap") and codes.shape == local.shape


def _place(part: "Part") -> str:
    return "-".join(map(str, part.offsets))


def _whole(tensor: Tensor) -> "Part":
    from torchtune.distributed import part_of

    return part_of(tensor)
