"""The whole way in miniature: train a tiny model for two steps, save it, read it again, generate."""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["SelfTest", "self_test"]

PROMPT = [0, *range(20, 28)]


class SelfTest(NamedTuple):
    """What came of a `self_test`.

    Args:
        device: Where it ran.
        losses: The loss of each step.
        tokens: How many were generated.
        faults: What was not as it must be; empty where all was.
    """

    device: str
    losses: list[float]
    tokens: int
    faults: list[str]


def self_test() -> SelfTest:
    """Run through loading, data, training, saving and generation under a temporary folder.

    Raises:
        TuneError: What a run would raise.
        RuntimeError: What torch raises where it does not work on this machine.
    """
    import torch
    from torchtune.checkpoint import save_model
    from torchtune.distributed import World, choose_device, device_facts
    from torchtune.generation import generate, load_checkpoint
    from torchtune.testing import tiny_checkpoint

    device = choose_device("auto", device_facts())
    with tempfile.TemporaryDirectory() as name:
        folder, world = Path(name), World(device=device)
        loaded = load_checkpoint(
            tiny_checkpoint(folder / "model"), dtype="fp32", device=device, pack=False
        )
        losses = _train(loaded.model, loaded.tokenizer, folder, world)
        save_model(loaded.model, folder / "saved", world=world, config=loaded.model.hf_config)
        loaded.tokenizer.save(folder / "saved")
        again = load_checkpoint(folder / "saved", dtype="fp32", device=device, pack=False)
        answers = [
            generate(model, [PROMPT], max_new_tokens=8) for model in (loaded.model, again.model)
        ]
        pairs = zip(loaded.model.parameters(), again.model.parameters(), strict=True)
        same = all(torch.equal(one, other) for one, other in pairs)
    checks = {
        "the loss did not fall": losses[1] < losses[0],
        "the weights read are not those saved": same,
        "the answers before and after saving differ": answers[0] == answers[1],
    }
    faults = [what for what, right in checks.items() if not right]
    return SelfTest(str(device), losses, len(answers[0][0]), faults)


def _train(model: Any, tokenizer: Any, folder: Path, world: Any) -> list[float]:
    """Take two steps on the same rows, and return their losses."""
    from torchtune.data import Steps, load_rows, tokenize_rows
    from torchtune.losses import LinearCrossEntropy
    from torchtune.testing import tiny_rows
    from torchtune.training import adamw, train_step

    rows = load_rows(tiny_rows(folder / "rows", 4))
    documents = tokenize_rows(rows, tokenizer, max_seq_len=256, progress=False)
    steps = Steps(documents, batch_size=4, max_seq_len=256)
    model.requires_grad_(True).train()
    optimizer, loss = adamw(model.parameters(), lr=0.01), LinearCrossEntropy()
    losses = [
        train_step(model, optimizer, batches, world, loss=loss).loss
        for epoch in range(2)
        for batches in steps.epoch(epoch)
    ]
    model.requires_grad_(False).eval()
    return losses
