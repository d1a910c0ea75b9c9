"""Print a checkpoint's mean loss on a dataset, in nats per supervised token."""

from dataclasses import dataclass

from torchtune import data, generation, training
from torchtune.config import MISSING, Component, TuneArgumentParser, build, checks
from torchtune.distributed import join_world
from torchtune.errors import report_errors


@dataclass
class LossParams:
    """Every argument of the recipe."""

    checkpoint: str = MISSING  # a run's output folder, or a model in Hugging Face's format
    dataset: Component = "sums"  # the rows
    batch_size: int = 8  # rows at once

    def __post_init__(self) -> None:
        with checks(self) as check:
            check.at_least("batch_size", 1)


class LossRecipe:
    """Load a checkpoint and measure it."""

    def __init__(self, params: LossParams) -> None:
        self.params = params

    def setup(self) -> None:
        """Make world, model and data."""
        self.world = join_world("auto")
        self.loaded = self.load_checkpoint()
        positions = self.loaded.model.max_positions
        form = self.loaded.form or data.ChatFormat(self.loaded.tokenizer)
        rows = build("dataset", self.params.dataset)
        self.documents = data.tokenize_rows(rows, form, max_seq_len=positions)

    def load_checkpoint(self) -> generation.LoadedCheckpoint:
        """Load model and tokenizer."""
        device = self.world.device
        return generation.load_checkpoint(self.params.checkpoint, device=device, pack=False)

    def train(self) -> None:
        """Measure, and print the result."""
        size, positions = self.params.batch_size, self.loaded.model.max_positions
        batches = data.validation_batches(self.documents, batch_size=size, max_seq_len=positions)
        loss = build("loss", "linear_cross_entropy")
        found = training.evaluate(self.loaded.model, list(batches), self.world, loss=loss)
        print(f"{found:.4f}")

    def save_checkpoint(self) -> None:
        """Do nothing: nothing is trained."""

    def cleanup(self) -> None:
        """Leave the world."""
        self.world.close()


if __name__ == "__main__":
    with report_errors():
        recipe = LossRecipe(TuneArgumentParser(LossParams).parse_args())
        recipe.setup()
        recipe.train()
        recipe.cleanup()
