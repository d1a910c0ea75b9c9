"""Read the Params of a recipe file without importing what the recipe itself needs."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from torchtune.config.schema import keys_of
from torchtune.config.source_file import import_file, module_name
from torchtune.errors import ConfigError, MissingError

__all__ = ["read_params"]

LIGHT = ("torchtune", "torchtune.config", "torchtune.errors")


def read_params(path: str | Path) -> type:
    """Return the Params dataclass of a recipe file.

    Only that class is run, with the definitions and imports that it needs, where those imports are
    the standard library and `torchtune.config`: milliseconds, and no torch. Where it needs more,
    the whole file is imported (not as ``__main__``), which costs what its imports cost. The file
    is the user's program, so it must never be one that a config names.

    Args:
        path: The recipe; the class is the one given to ``TuneArgumentParser``, else the first
            dataclass whose name ends in ``Params``.

    Raises:
        MissingError: There is no such file, or an import in it fails.
        ConfigError: It is not Python, or has no Params.
    """
    path = Path(path).resolve()
    try:
        source = path.read_text(encoding="utf-8")
    except OSError as error:
        raise MissingError(
            "E-RECIPE-FILE", f"the recipe '{path}' cannot be read: {error}"
        ) from error
    try:
        tree = ast.parse(source, str(path))
    except SyntaxError as error:
        what = f"not Python: {error.msg}"
        raise ConfigError("E-RECIPE-FILE", what, where=f"{path}:{error.lineno}") from error
    name = _params_name(tree)
    if name is None:
        what = "no Params in this recipe: it has no TuneArgumentParser(...) and no ...Params class"
        raise ConfigError("E-RECIPE-PARAMS", what, where=str(path))
    return _light(tree, name, path) or _whole(path, name)


def _params_name(tree: ast.Module) -> str | None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Name):
            called = node.func
            called = called.value if isinstance(called, ast.Subscript) else called
            if getattr(called, "id", getattr(called, "attr", "")) == "TuneArgumentParser":
                return node.args[0].id
    classes = (node.name for node in tree.body if isinstance(node, ast.ClassDef))
    return next((name for name in classes if name.endswith("Params")), None)


def _light(tree: ast.Module, name: str, path: Path) -> type | None:
    """Run the part of the file that the class needs; None where that part needs more."""
    needed = _needed(tree, name)
    if needed is None:
        return None
    module = _module(path)
    code = compile(ast.Module(body=needed, type_ignores=[]), str(path), "exec")
    try:
        exec(code, vars(module))
        params: type = getattr(module, name)
        keys_of(params)
    except (NameError, AttributeError):  # a name that only the whole file defines
        del sys.modules[module.__name__]
        return None
    return params


def _module(path: Path) -> ModuleType:
    """Make an empty module for the file, so that its class can be pickled and its source found."""
    module = ModuleType(module_name(path))
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    return module


def _needed(tree: ast.Module, name: str) -> list[ast.stmt] | None:
    """Return the statements that `name` needs, in order; None where one imports more."""
    defined: dict[str, list[ast.stmt]] = {}
    for statement in tree.body:
        for word in _defines(statement):
            defined.setdefault(word, []).append(statement)
    wanted, kept = [name], list[ast.stmt]()
    kept += [s for s in tree.body if isinstance(s, ast.ImportFrom) and s.module == "__future__"]
    while wanted:
        word = wanted.pop()
        for statement in defined.get(word, []):
            if statement in kept:
                continue
            if not _is_light(statement):
                return None
            kept.append(statement)
            names = (n for n in ast.walk(statement) if isinstance(n, ast.Name))
            wanted += [n.id for n in names if isinstance(n.ctx, ast.Load)]
    return sorted(kept, key=lambda statement: statement.lineno)


def _defines(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.split(".")[0] for alias in statement.names)
    elif isinstance(statement, ast.ClassDef | ast.FunctionDef):
        yield statement.name
    elif isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        yield from (n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))
    elif isinstance(statement, ast.If | ast.Try | ast.With):
        for inner in ast.iter_child_nodes(statement):
            if isinstance(inner, ast.stmt):
                yield from _defines(inner)


def _is_light(statement: ast.stmt) -> bool:
    """Whether every import in a statement is of the standard library or torch-free torchtune.

    Imports inside functions run when the function is called and are not asked.
    """
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return True
    for node in ast.walk(statement):
        for name in _imports(node):
            if name.split(".")[0] not in sys.stdlib_module_names and not _torch_free(name):
                return False
    return True


def _imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    if node.level or node.module is None:
        return ["."]  # a relative import: a recipe is no package, so only the whole file can tell
    if node.module == "torchtune":
        return [f"torchtune.{alias.name}" for alias in node.names]
    return [node.module]


def _torch_free(name: str) -> bool:
    return name in LIGHT or name.startswith("torchtune.config.")


def _whole(path: Path, name: str) -> type:
    found = getattr(import_file(path), name, None)
    if not isinstance(found, type):
        raise ConfigError("E-RECIPE-PARAMS", f"'{name}' is no class", where=str(path))
    return found
