"""Every public name of core says what its arguments, results, errors and shapes are.

The rules, for each name that a room lists and for the public methods of each class:

- An argument, or a field of a dataclass, stands in the docstring: as `name:` under Args, in
  backquotes, or as a word of the first paragraph; or all are said to be those of another name.
  Those of a class stand in the class's docstring.
- What is given back is told under Returns or Yields, or in the first paragraph, by a verb that
  says so; or the first argument is "changed in place and returned". A property is what its
  docstring names.
- An error class that the body itself raises stands under Raises.
- Where a tensor comes in or goes out, there is a shape in brackets, or the word shape.
"""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
GIVES = re.compile(r"\b(returns?|yields?|gives?|whether)\b|^(build|collect|load|map|read) ", re.I)
SHAPE = re.compile(r"\[[A-Za-z*.][^\]]*\]|\bshapes?\b")


class Public(NamedTuple):
    name: str
    node: ast.FunctionDef | ast.ClassDef
    owner: ast.ClassDef | None

    @property
    def doc(self) -> str:
        return ast.get_docstring(self.node) or ""

    @property
    def whole(self) -> str:
        """The docstring, with the class's for a method."""
        return self.doc + (ast.get_docstring(self.owner) or "" if self.owner else "")


def functions(node: ast.ClassDef) -> list[ast.FunctionDef]:
    return [part for part in node.body if isinstance(part, ast.FunctionDef)]


def public_names() -> Iterator[Public]:
    spec = importlib.util.spec_from_file_location("public_api", ROOT / "ci" / "public_api.py")
    api = sys.modules["public_api"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api)
    for room in api.rooms():
        for short in api.public_names(room):
            node = api.definition(getattr(room, short))
            if node is None:
                continue
            name = f"{room.__name__}.{short}"
            yield Public(name, node, None)
            for method in functions(node) if isinstance(node, ast.ClassDef) else ():
                if not method.name.startswith("_") or method.name == "__call__":
                    yield Public(f"{name}.{method.name}", method, node)


def maker(node: ast.ClassDef) -> ast.FunctionDef | None:
    """Return what makes an instance, if the class says it itself."""
    return next((each for each in functions(node) if each.name in ("__init__", "__new__")), None)


def arguments(node: ast.FunctionDef | ast.ClassDef) -> list[str]:
    if isinstance(node, ast.ClassDef):
        made = maker(node)
        fields = [part.target for part in node.body if isinstance(part, ast.AnnAssign)]
        return arguments(made) if made else [ast.unparse(field) for field in fields]
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    every += [each for each in (node.args.vararg, node.args.kwarg) if each]
    return [each.arg for each in every if each.arg not in ("self", "cls")]


def decorators(node: ast.FunctionDef | ast.ClassDef) -> str:
    return " ".join(map(ast.unparse, node.decorator_list))


def annotations(node: ast.FunctionDef | ast.ClassDef) -> str:
    if isinstance(node, ast.ClassDef):
        made = maker(node)
        return annotations(made) if made else ""
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    hints = [each.annotation for each in every] + [node.returns]
    return " ".join(ast.unparse(hint) for hint in hints if hint)


def raised(node: ast.AST) -> set[str]:
    """Return the names of the error classes that a body raises, not those of functions in it."""
    found, queue = set[str](), list(ast.iter_child_nodes(node))
    while queue:
        part = queue.pop()
        if isinstance(part, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(part, ast.Raise) and isinstance(part.exc, ast.Call):
            found |= set(re.findall(r"^[A-Z]\w*", ast.unparse(part.exc.func)))
        queue += ast.iter_child_nodes(part)
    return found


def section(doc: str, name: str) -> str:
    found = re.search(rf"^{name}:\n((?:[ \t]+.*\n?|\n)+)", doc, re.M)
    return found[1] if found else ""


def undocumented(public: Public) -> Iterator[str]:
    if re.search(r"\bArg(ument)?s\b.* are those of\s`", public.doc):
        return
    lists = section(public.doc, "Args") + section(public.doc, "Attributes")
    listed = re.findall(r"^ {4}\*{0,2}([\w, *]+):", lists, re.M)
    quoted = re.findall(r"`+([^`]+)`+", public.doc)
    words = " ".join([*listed, *quoted, public.doc.split("\n\n")[0]])
    named = set(re.findall(r"\w+", words))
    yield from (f"argument {name}" for name in arguments(public.node) if name not in named)


def unsaid(public: Public) -> Iterator[str]:
    node = public.node
    if isinstance(node, ast.ClassDef) or "property" in decorators(node):
        return
    returns = ast.unparse(node.returns) if node.returns else "None"
    first = public.doc.split("\n\n")[0]
    sections = section(public.doc, "Returns") + section(public.doc, "Yields")
    told = sections or GIVES.search(first) or "and returned" in public.doc
    if returns not in ("None", "NoReturn", "Iterator[None]") and not told:
        yield f"what it gives ({returns})"


def untold(public: Public) -> Iterator[str]:
    node = public.node
    bodies = [node]
    if isinstance(node, ast.ClassDef):
        bodies = [each for each in functions(node) if each.name in ("__init__", "__post_init__")]
    told = section(public.doc, "Raises")
    yield from (f"raises {name}" for body in bodies for name in raised(body) if name not in told)


def shapeless(public: Public) -> Iterator[str]:
    tensors = re.search(r"(?<![\w\[])(?<!, )Tensor\b", annotations(public.node))
    if tensors and not SHAPE.search(public.whole):
        yield "a shape"


NAMES = list(public_names())


@pytest.mark.parametrize("public", NAMES, ids=lambda public: public.name)
def test_a_public_name_is_documented(public):
    assert public.doc, "there is no docstring"
    lacks = [*undocumented(public), *unsaid(public), *untold(public), *shapeless(public)]
    assert lacks == []
