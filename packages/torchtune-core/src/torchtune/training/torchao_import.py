"""The one place that imports torchao, which is not required and talks while it is imported."""

import logging
import warnings
from importlib import import_module
from typing import Any

from torchtune.errors import MissingError

__all__ = ["import_torchao"]


def import_torchao(module: str, *, what: str, where: str) -> Any:
    """Import a module of torchao and return it, without what it says of kernels it cannot load.

    Args:
        module: Its full name, such as ``"torchao.float8"``.
        what: Who needs it, the subject of the error, such as ``"training in fp8"``.
        where: The key that asked for it.

    Raises:
        MissingError: E-TORCHAO: torchao is not installed, or too old to have the module.
    """
    level = logging.root.manager.disable
    try:
        logging.disable(max(level, logging.WARNING))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(module)
    except ImportError as error:
        raise MissingError(
            "E-TORCHAO", f"{what} needs torchao, which cannot be imported: {error}",
            where=where, do="pip install torchao",
        ) from error  # fmt: skip
    finally:
        logging.disable(level)
