"""Configs: a Params dataclass as schema, a YAML over it, a command line over both.

Nothing here imports torch, so that a typo costs milliseconds: signatures of registered components
are read from their source, and a component's module is imported when a config names it by a
dotted path or when it is built.

A recipe declares its keys, with their docs as comments, and reads them:

    >>> @dataclass
    ... class Params:
    ...     # --- optimizer
    ...     optimizer: Component = "adamw"  # adamw, sgd or any class of torch.optim
    ...     batch_size: Count = 8  # rows of one micro-batch
    ...     clip_grad_norm: float | None = None  # largest norm of the gradient
    ...
    ...     def __post_init__(self) -> None:
    ...         with checks(self) as check:
    ...             check.more_than("clip_grad_norm", 0)
    >>> params = TuneArgumentParser(Params).parse_args(["optimizer.lr=1e-4", "--batch-size", "2"])
    >>> params
    Params(optimizer={'_component_': 'adamw', 'lr': 0.0001}, batch_size=2, clip_grad_norm=None)
    >>> optimizer = build("optimizer", params.optimizer, model.parameters())

Types of fields: bool, int, float, `Count`, str, Path, Literal, lists, tuples, mappings, unions of
these, Any and `Component`. Everything that a config gives is plain Python and can be pickled.
"""

from torchtune.config.build import build
from torchtune.config.checks import Checks, checks
from torchtune.config.editor_schema import json_schema
from torchtune.config.files import lacks_files
from torchtune.config.names import nearest
from torchtune.config.parallel import Parallel
from torchtune.config.parser import TuneArgumentParser
from torchtune.config.recipe_file import read_params
from torchtune.config.registry import allowed_names, locate, trust
from torchtune.config.resolved import resolved_yaml
from torchtune.config.schema import MISSING, Component, Count
from torchtune.config.suggest import suggest
from torchtune.config.validation import choose_recipe, validate

__all__ = [
    "MISSING",
    "Checks",
    "Component",
    "Count",
    "Parallel",
    "TuneArgumentParser",
    "allowed_names",
    "build",
    "checks",
    "choose_recipe",
    "json_schema",
    "lacks_files",
    "locate",
    "nearest",
    "read_params",
    "resolved_yaml",
    "suggest",
    "trust",
    "validate",
]
