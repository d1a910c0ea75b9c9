"""What was pushed loads as the model card says, with the same logits."""

import re
from pathlib import Path

import pytest
import torch
from torchtune.generation import load_checkpoint
from torchtune_integrations.hub import prepare, push

pytest.importorskip("transformers")
pytest.importorskip("peft")
IDS = torch.arange(4, 60).reshape(2, 28)


def ours(checkpoint: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_checkpoint(checkpoint, dtype="fp32").model(IDS)


def snippets(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.S)


@pytest.mark.parametrize("which", ["lora", "full"])
def test_what_the_card_says_loads_the_model_with_equal_logits(hub, runs, which):
    run, repo = getattr(runs, which), f"tester/{which}"
    assert push(prepare(run, repo)) == f"{hub.url}/{repo}"
    expected = ours(run)
    codes = snippets((hub.repos.root / repo / "README.md").read_text())
    assert len(codes) == (2 if which == "lora" else 1)
    for code in codes:
        there: dict[str, object] = {}
        exec(code, there)
        with torch.no_grad():
            logits = there["model"](IDS).logits
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert (ours(runs.base) - expected).abs().max() > 0.01  # the adapter is not left out
