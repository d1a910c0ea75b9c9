"""Read a function's signature from its source file, without importing torch.

Importing `torch.optim` to learn that an argument is misspelt costs two seconds; reading two of its
files costs milliseconds. What cannot be read for certain is left to the import.
"""

import ast
import builtins
import collections.abc
import importlib.util
import inspect
import pathlib
import sys
import typing
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = ["UNWRITTEN", "read_docstring", "read_signature"]

MAX_HOPS = 8  # `from a import x` in a, from b in ...
PARTS = ast.If | ast.Try


class _Unwritten:
    """Stands for a default that is no plain value; there is one, but it cannot be shown."""

    def __repr__(self) -> str:
        return "..."


UNWRITTEN = _Unwritten()


class _Foreign(type):
    """The type of classes that are only known by name here."""

    def __getattr__(cls, name: str) -> "_Foreign":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Foreign(name, (), {})

    def __getitem__(cls, item: Any) -> "_Foreign":
        return cls


class _Names(dict[str, Any]):
    """The names that an annotation may use; any other is a class known by its name alone."""

    def __init__(self, tree: ast.Module) -> None:
        known = {**vars(builtins), **vars(collections.abc), **vars(typing), **vars(pathlib)}
        super().__init__(known)
        self.tree, self.open = tree, set[str]()

    def __missing__(self, name: str) -> Any:
        for statement in _statements(self.tree):
            alias = _alias_value(statement, name)
            if alias is not None and name not in self.open:
                self.open.add(name)
                return self.value(alias)
        return _Foreign(name, (), {})

    def value(self, node: ast.expr | None) -> Any:
        """Evaluate an annotation; one that cannot be evaluated allows anything."""
        if node is None:
            return inspect.Parameter.empty
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        code = compile(ast.Expression(node), "<annotation>", "eval")
        try:
            return eval(code, {"__builtins__": {}}, self)
        except (TypeError, AttributeError, NameError, SyntaxError):
            return Any


def _alias_value(statement: ast.stmt, name: str) -> ast.expr | None:
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    found = any(isinstance(target, ast.Name) and target.id == name for target in targets)
    return statement.value if found and isinstance(statement, ast.Assign | ast.AnnAssign) else None


def _statements(tree: ast.AST) -> list[ast.stmt]:
    """Return the statements of a module, those inside `if` and `try` too."""
    found = []
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.stmt | ast.ExceptHandler):
            found += [child] if isinstance(child, ast.stmt) else []
            found += _statements(child) if isinstance(child, PARTS) else []
    return found


@lru_cache(maxsize=32)
def _tree(module: str) -> tuple[ast.Module, bool] | None:
    """Return a module's syntax and whether it is a package; nothing is imported."""
    root, *rest = module.split(".")
    spec = None if root in sys.builtin_module_names else importlib.util.find_spec(root)
    if spec is None or not spec.submodule_search_locations:
        return None
    for place in spec.submodule_search_locations:
        base = Path(place).joinpath(*rest)
        for file in (base / "__init__.py", base.with_suffix(".py")):
            if file.is_file():
                text = file.read_text(encoding="utf-8")
                return ast.parse(text, str(file)), file.name == "__init__.py"
    return None


def read_signature(target: str) -> inspect.Signature | None:
    """Return the signature of ``module:attribute``, or None where its source does not tell.

    Follows imports from file to file, into a class's own ``__init__`` and through
    `functools.partial`. Classes of annotations that Python does not bring are stand-ins with the
    right name; a default that is no literal is `UNWRITTEN`.
    """
    found = _found(target)
    return _signature(*found) if found else None


def read_docstring(target: str) -> str:
    """Return the docstring of ``module:attribute`` without its indentation, empty if there is none.

    That of a `functools.partial` is its function's.
    """
    tree, found = _found(target) or (ast.Module([], []), None)
    while isinstance(found, ast.Assign) and isinstance(found.value, ast.Call) and found.value.args:
        first = found.value.args[0]
        found = _definition(tree, first.id) if isinstance(first, ast.Name) else None
    written = found if isinstance(found, ast.FunctionDef | ast.ClassDef) else None
    return (ast.get_docstring(written) if written else None) or ""


def _found(target: str) -> tuple[ast.Module, ast.stmt] | None:
    """Return the statement that defines ``module:attribute``, in the module where it stands."""
    module, _, attribute = target.partition(":")
    for _ in range(MAX_HOPS):
        read = _tree(module)
        if read is None or "." in attribute:
            return None
        tree, is_package = read
        found = _definition(tree, attribute)
        if not isinstance(found, ast.ImportFrom):
            return (tree, found) if found is not None else None
        module = _imported(found, module, is_package)
        alias = next(a for a in found.names if (a.asname or a.name) == attribute)
        attribute = alias.name
    return None


def _definition(tree: ast.Module, name: str) -> ast.stmt | None:
    for statement in reversed(_statements(tree)):
        if isinstance(statement, ast.FunctionDef | ast.ClassDef) and statement.name == name:
            return statement
        if isinstance(statement, ast.ImportFrom) and any(
            (alias.asname or alias.name) == name for alias in statement.names
        ):
            return statement
        if _alias_value(statement, name) is not None:
            return statement
    return None


def _imported(statement: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not statement.level:
        return statement.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - statement.level + (1 if is_package else 0)]
    return ".".join([*parts, *([statement.module] if statement.module else [])])


def _signature(tree: ast.Module, found: ast.stmt) -> inspect.Signature | None:
    if isinstance(found, ast.ClassDef):
        methods = (s for s in found.body if isinstance(s, ast.FunctionDef))
        init = next((m for m in reversed(list(methods)) if m.name == "__init__"), None)
        made = {s.name for s in found.body if isinstance(s, ast.FunctionDef)} & {"__new__"}
        if made or found.keywords or found.decorator_list:
            return None
        if init is None:
            return None if found.bases else inspect.Signature()
        return _of_function(tree, init, skip=1)
    if isinstance(found, ast.FunctionDef):
        return None if found.decorator_list else _of_function(tree, found)
    return _of_partial(tree, found)


def _of_function(tree: ast.Module, node: ast.FunctionDef, skip: int = 0) -> inspect.Signature:
    names, kinds, made = _Names(tree), inspect.Parameter, []
    positional = [*node.args.posonlyargs, *node.args.args]
    defaults = [None] * (len(positional) - len(node.args.defaults)) + list(node.args.defaults)
    groups = [
        *(
            (arg, default, kinds.POSITIONAL_OR_KEYWORD)
            for arg, default in zip(positional, defaults, strict=True)
        ),
        *([(node.args.vararg, None, kinds.VAR_POSITIONAL)] if node.args.vararg else []),
        *(
            (arg, default, kinds.KEYWORD_ONLY)
            for arg, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        ),
        *([(node.args.kwarg, None, kinds.VAR_KEYWORD)] if node.args.kwarg else []),
    ]
    for arg, default, kind in groups[skip:]:
        value = kinds.empty if default is None else _literal(default)
        made.append(kinds(arg.arg, kind, default=value, annotation=names.value(arg.annotation)))
    return inspect.Signature(made)


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return UNWRITTEN


def _of_partial(tree: ast.Module, found: ast.stmt) -> inspect.Signature | None:
    """``name = partial(function, **sizes)``: any argument may be given there, so no default is known."""
    call = getattr(found, "value", None)
    if (
        not isinstance(call, ast.Call)
        or len(call.args) != 1
        or not isinstance(call.args[0], ast.Name)
    ):
        return None
    called, inner = getattr(call.func, "id", getattr(call.func, "attr", "")), None
    if called == "partial":
        inner = _definition(tree, call.args[0].id)
    if not isinstance(inner, ast.FunctionDef):
        return None
    whole = _signature(tree, inner)
    if whole is None:
        return None
    return whole.replace(
        parameters=[
            p.replace(default=UNWRITTEN) if p.kind is p.KEYWORD_ONLY else p
            for p in whole.parameters.values()
        ]
    )
