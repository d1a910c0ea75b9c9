"""What measures a model besides its loss while a run goes on."""

from typing import TYPE_CHECKING, Protocol

from torch import nn

if TYPE_CHECKING:
    from torchtune.data import Tokenizer
    from torchtune.distributed import World

__all__ = ["Evaluator"]


class Evaluator(Protocol):
    """Benchmarks taken in the run: the key `evaluate` of a recipe builds one.

    Every process calls it in the same step, as the model may be sharded over them.
    """

    def due(self, step: int, *, last: bool) -> bool:
        """Say whether it is time after `step` optimizer steps; `last` is the end of the run."""
        ...

    def __call__(
        self, model: nn.Module, tokenizer: "Tokenizer", world: "World"
    ) -> dict[str, float]:
        """Return figures by name, such as ``arc_easy/acc``, of `model` with its `tokenizer`.

        Every process of `world` makes this call. Model and random state are left as they are.
        """
        ...
