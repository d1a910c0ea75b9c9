"""What a recipe offers to whoever runs it."""

from typing import Any, Protocol, runtime_checkable

__all__ = ["FTRecipeInterface"]


@runtime_checkable
class FTRecipeInterface(Protocol):
    """A fine-tuning recipe: five methods in the order of a run, no base class to inherit from."""

    def setup(self) -> None:
        """Make every part, and fail here for whatever can fail cheaply."""

    def load_checkpoint(self) -> Any:
        """Restore weights and state; return how far the run is, or None for a fresh one."""

    def train(self) -> None:
        """Run the training loop."""

    def save_checkpoint(self) -> None:
        """Write all that a resume needs."""

    def cleanup(self) -> None:
        """Close what is open."""
