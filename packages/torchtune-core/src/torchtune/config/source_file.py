"""Import a Python file that the user named, by its path."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from torchtune.errors import ConfigError, MissingError

__all__ = ["import_file", "module_name"]


def module_name(path: Path) -> str:
    """Return the name under which a file's module is kept; its stem is for messages."""
    return f"torchtune_recipe_{path.stem}"


def import_file(path: Path) -> ModuleType:
    """Import a file as a module of its own, not as ``__main__``; its folder is searched first.

    Raises:
        MissingError: An import in it fails.
        ConfigError: It is not a Python file.
    """
    name = module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError("E-RECIPE-FILE", "a recipe is a Python file", where=str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))  # as when the file is run
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        what = f"the recipe needs {error.name or 'a module'}, which cannot be imported: {error}"
        raise MissingError("E-RECIPE-IMPORT", what, where=str(path)) from error
    finally:
        sys.path.remove(str(path.parent))
    return module
