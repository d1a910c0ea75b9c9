"""The one place that imports torchao, which is not required and talks while it is imported."""

import logging
import warnings
from importlib import import_module, metadata
from typing import Any

from torchtune.errors import MissingError

__all__ = ["import_torchao"]

OLDEST = (0, 18)
"""The version of torchao whose names we use."""


def import_torchao(module: str, *, what: str, where: str) -> Any:
    """Import a module of torchao and return it, without what it says of kernels it cannot load.

    Args:
        module: Its full name, such as ``"torchao.float8"``.
        what: Who needs it, the subject of the error, such as ``"training in fp8"``.
        where: The key that asked for it.

    Raises:
        MissingError: E-TORCHAO: torchao is not installed, or too old.
    """
    do = 'pip install "torchao>={}.{}"'.format(*OLDEST)
    level = logging.root.manager.disable
    try:
        logging.disable(max(level, logging.WARNING))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = import_module(module)
    except ImportError as error:
        why = f"{what} needs torchao, which cannot be imported: {error}"
        raise MissingError("E-TORCHAO", why, where=where, do=do) from error
    finally:
        logging.disable(level)
    version = metadata.version("torchao")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        why = f"{what} needs a newer torchao than {version}"
        raise MissingError("E-TORCHAO", why, where=where, do=do)
    return found
