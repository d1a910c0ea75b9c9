"""Configs: a Params dataclass as schema, a YAML over it, a command line over both.

Nothing here imports torch, so that a typo costs milliseconds; a component's module is imported
when its signature has to be read or when it is built.
"""

from torchtune.config.build import build
from torchtune.config.checks import Checks, checks
from torchtune.config.parser import TuneArgumentParser
from torchtune.config.registry import trust
from torchtune.config.schema import MISSING, Component

__all__ = ["MISSING", "Checks", "Component", "TuneArgumentParser", "build", "checks", "trust"]
