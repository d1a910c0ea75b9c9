"""The argument parser of every recipe: its Params are the options."""

import sys
from collections.abc import Sequence
from typing import Generic, TypeVar

from torchtune.config.arguments import read_arguments
from torchtune.config.helptext import help_text
from torchtune.config.load import load, raised
from torchtune.config.registry import trust, trust_recipe
from torchtune.config.schema import keys_of

__all__ = ["TuneArgumentParser"]

P = TypeVar("P")


class TuneArgumentParser(Generic[P]):
    """Read a recipe's command line: ``[--config FILE] [key=value ...] [~key ...] [--key value ...]``.

    The later wins: defaults of the dataclass, the YAML of ``--config``, the command line. A
    component is replaced with all its arguments when another is named. ``~key`` makes a key null
    where that is allowed, else gives it its default back; ``~component.argument`` takes out one
    argument. A bool flag stands alone (``--packed``, ``--no-packed``). ``--override`` may stand
    before ``key=value``, ``--trust PACKAGE`` lets the config name that package's own classes and
    functions, ``--help`` lists the keys. Imports torch only to look up what the config names.

    Args:
        params: A dataclass whose fields are the keys; see `torchtune.config`.
    """

    def __init__(self, params: type[P]) -> None:
        self.params = params

    def parse_args(self, argv: Sequence[str] | None = None) -> P:
        """Return the params that the command line asks for.

        Args:
            argv: Its words without the program's name; those of this process by default.

        Raises:
            ConfigError: Something is wrong; several faults come together as `Faults`.
            MissingError: The config file, or a package that it needs, is not there.
            SystemExit: Help was asked for.
        """
        words = sys.argv[1:] if argv is None else argv
        arguments = read_arguments(words, keys_of(self.params))
        if arguments.help:
            sys.stdout.write(help_text(self.params))
            raise SystemExit(0)
        for package in arguments.trust:
            trust(package)
        if self.params.__module__ == "__main__":  # the user ran this file, so its code may be named
            trust_recipe(sys.modules["__main__"].__file__)
        made, faults, _ = load(self.params, arguments)
        if made is None:
            raise raised(faults)
        return made
