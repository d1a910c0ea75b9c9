"""The Params class that the tests of configs share, and two ways to read it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from torchtune.config import MISSING, Component, TuneArgumentParser, checks
from torchtune.errors import TuneError


@dataclass
class Params:
    """A small training run."""

    # --- model ---
    model: Component = "torch.nn.Identity"
    dataset: Component = MISSING
    dataset_val: Annotated[Component | None, "dataset"] = None
    # --- optimizer ---
    optimizer: Component = field(default_factory=lambda: {"_component_": "sgd", "lr": 0.5})
    lr_scheduler: Component | None = None
    loss: Component | None = None
    batch_size: int = 8  # rows of one micro-batch
    # Where the results go.
    output_dir: str = "./out"
    noise: float = 1.0
    dtype: Literal["fp32", "bf16"] = "bf16"
    packed: bool = False
    max_steps: int | None = None
    targets: str | list[str] = "all-linear"
    extra: Any = None

    def __post_init__(self) -> None:
        with checks(self) as check:
            check.at_least("batch_size", 1)
            check.that(not self.packed or self.max_steps != 7, "packed", "not 7 steps packed")
            check.that(self.model["_component_"] != "none", "model", "a model is needed")


DATA_YAML = "dataset: {_component_: torch.nn.Linear, in_features: 1, out_features: 1}\n"


@pytest.fixture
def params_class() -> type:
    """The class itself."""
    return Params


@pytest.fixture
def parse(tmp_path: Path) -> Callable[..., Params]:
    """A function that parses a YAML text and words; the text's first line is 2, after a data set.

    With None for the text, no file is written before.
    """

    def parse(text: str | None = "", *words: str) -> Params:
        file = tmp_path / "run.yaml"
        if text is not None:
            file.write_text(DATA_YAML + text, encoding="utf-8")
        return TuneArgumentParser(Params).parse_args(["--config", str(file), *words])

    return parse


@pytest.fixture
def faults(parse: Callable[..., Params]) -> Callable[..., list[TuneError]]:
    """A function that returns every fault of what `parse` is given; there must be one."""

    def faults(text: str | None = "", *words: str) -> list[TuneError]:
        with pytest.raises(TuneError) as caught:
            parse(text, *words)
        return getattr(caught.value, "faults", [caught.value])

    return faults
