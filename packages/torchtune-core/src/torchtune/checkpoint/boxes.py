"""Boxes cut out of tensors, as stretches of elements in a row-major file."""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchtune.distributed import Part

__all__ = ["common_box", "slices", "stretches", "within"]


def stretches(shape: Sequence[int], box: "Part") -> Iterator[tuple[int, int]]:
    """Yield first element and count of each contiguous stretch that `box` takes of a `shape`.

    In the order of the box's own elements; rows of a matrix are one stretch, columns many.
    """
    if not prod(box.sizes):
        return
    cut = len(shape)  # dimensions from here on are whole
    while cut and box.sizes[cut - 1] == shape[cut - 1]:
        cut -= 1
    cut = max(cut - 1, 0)
    strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    begin = box.offsets[cut] * strides[cut] if shape else 0
    ranges = (range(at, at + size) for at, size in zip(box.offsets[:cut], box.sizes, strict=False))
    for place in product(*ranges):
        yield (
            begin + sum(i * n for i, n in zip(place, strides, strict=False)),
            prod(box.sizes[cut:]),
        )


def common_box(one: "Part", other: "Part") -> "Part":
    """Return what two boxes of a tensor have in common; its sizes hold a 0 if that is nothing."""
    pairs = zip(one.offsets, one.sizes, other.offsets, other.sizes, strict=True)
    bounds = [(max(a, b), min(a + size, b + count)) for a, size, b, count in pairs]
    offsets = tuple(begin for begin, _ in bounds)
    return type(one)(offsets, tuple(max(end - begin, 0) for begin, end in bounds))


def within(box: "Part", outer: "Part") -> "Part":
    """Return `box` as it lies in `outer`, which holds it, and not in the whole tensor."""
    offsets = (at - start for at, start in zip(box.offsets, outer.offsets, strict=True))
    return type(box)(tuple(offsets), box.sizes)


def slices(box: "Part") -> tuple[slice, ...]:
    """Return what a tensor is indexed with to get `box`."""
    return tuple(slice(at, at + size) for at, size in zip(*box, strict=True))
