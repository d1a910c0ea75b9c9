"""The output layer, which hands its matrix to the loss instead of making logits."""

from torch import Tensor, nn

__all__ = ["OutputLinear"]


class OutputLinear(nn.Linear):
    """A linear layer to the vocabulary whose matrix a loss can take in place of the logits."""

    def matrix(self) -> Tensor:
        """Return the matrix `[vocab, dim]` that maps hidden states to logits."""
        return self.weight
