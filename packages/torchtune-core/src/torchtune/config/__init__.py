"""Configs: a Params dataclass as schema, a YAML over it, a command line over both.

Nothing here imports torch, so that a typo costs milliseconds; a component's module is imported
when its signature has to be read or when it is built.
"""

from torchtune.config.build import build
from torchtune.config.checks import Checks, checks
from torchtune.config.files import lacks_files
from torchtune.config.parser import TuneArgumentParser
from torchtune.config.recipe_file import read_params
from torchtune.config.registry import locate, trust
from torchtune.config.resolved import resolved_yaml
from torchtune.config.schema import MISSING, Component
from torchtune.config.validation import choose_recipe, validate

__all__ = [
    "MISSING",
    "Checks",
    "Component",
    "TuneArgumentParser",
    "build",
    "checks",
    "choose_recipe",
    "lacks_files",
    "locate",
    "read_params",
    "resolved_yaml",
    "trust",
    "validate",
]
