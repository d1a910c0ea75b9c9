"""Keep the text file of core's public names and signatures: `python ci/public_api.py --write`.

The file is packages/torchtune-core/api.txt. It is read from the source, so it is the same on every
version of Python. Without `--write` the script compares, and says what a change needs before it is
right: a new file, a version that is not released yet, and a line in that version's changelog for
each name that is not what the last release had.
"""

import argparse
import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torchtune

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "packages" / "torchtune-core"
FILE = PACKAGE / "api.txt"
SPECIAL = {"__init__", "__call__", "__iter__", "__len__", "__getitem__"}
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public_names(room: ModuleType) -> list[str]:
    return sorted(getattr(room, "__all__", ()))


def rooms() -> Iterator[ModuleType]:
    """Yield the modules that make a promise: each room, and the modules that a room lists."""
    for found in sorted(pkgutil.iter_modules(torchtune.__path__), key=lambda found: found.name):
        room = importlib.import_module(f"torchtune.{found.name}")
        yield room
        parts = (getattr(room, name) for name in public_names(room))
        yield from (part for part in parts if inspect.ismodule(part))


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(sys.modules[module]))


def definition(thing: Any) -> Definition | None:
    """Return where a function or class of ours is defined, or nothing for any other thing."""
    thing = inspect.unwrap(thing) if inspect.isfunction(thing) else thing
    if not (inspect.isfunction(thing) or inspect.isclass(thing)):
        return None
    for node in parsed(thing.__module__).body:
        if isinstance(node, Definition) and node.name == thing.__name__:
            return node
    return None


def function_line(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    kinds = {ast.unparse(each).split("(")[0] for each in node.decorator_list}
    kind = "".join(f"{k} " for k in ("property", "classmethod", "staticmethod") if k in kinds)
    return f"{kind}def {node.name}({ast.unparse(node.args)}){returns}"


def class_lines(node: ast.ClassDef) -> Iterator[str]:
    """Yield a class, its fields and its public methods, as far as its own body has them."""
    bases = ", ".join(ast.unparse(base) for base in [*node.bases, *node.keywords])
    kinds = "".join(f" @{ast.unparse(each)}" for each in node.decorator_list)
    yield f"class {node.name}({bases}){kinds}"
    for part in node.body:
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
            if part.name in SPECIAL or not part.name.startswith("_"):
                yield f"    {function_line(part)}"
        elif isinstance(part, ast.AnnAssign) and not ast.unparse(part.target).startswith("_"):
            yield f"    {ast.unparse(part)}"


def lines_of(name: str, thing: Any) -> list[str]:
    """Return the lines that describe one public name."""
    if inspect.ismodule(thing):
        return [f"module {name}"]
    node = definition(thing)
    if isinstance(node, ast.ClassDef):
        return list(class_lines(node))
    if node:
        return [function_line(node)]
    kind = type(thing)
    alias = kind.__module__ in ("typing", "types", "collections.abc")
    return [f"{name}: {'alias' if alias else kind.__name__}"]


def generate() -> str:
    """Return the whole text, one block a room."""
    blocks = [f"# The public API of torchtune-core {torchtune.__version__}, by `hatch run api`."]
    for room in rooms():
        lines = [room.__name__]
        for name in public_names(room):
            lines += [f"    {line}" for line in lines_of(name, getattr(room, name))]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def blocks_by_name(text: str) -> dict[str, str]:
    """Return each ``room.name`` with the lines that describe it."""
    found: dict[str, str] = {}
    room = name = ""
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if not line or line.startswith("#"):
            continue
        if not indent:
            room = line
        else:
            if indent == 4 and (match := re.match(r" +(?:(?:def|class|module) )?(\w+)", line)):
                name = f"{room}.{match[1]}"
            found[name] = found.get(name, "") + line
    return found


def differing(before: str, after: str) -> list[str]:
    """List the names that two texts describe differently."""
    old, new = blocks_by_name(before), blocks_by_name(after)
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else ""


def changelog_of(version: str) -> str:
    """Return the section of one version, or nothing."""
    text = (PACKAGE / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    return next((part for part in sections if part.startswith(f"{version} ")), "")


def unannounced(released: str, now: str, changelog: str) -> list[str]:
    """List the names that differ between two texts and that a changelog does not mention."""
    names = differing(released, now)
    words = set(re.findall(r"\w+", changelog))
    return [name for name in names if name.rpartition(".")[2] not in words]


def faults(kept: str, now: str) -> list[str]:
    """List what has to be done before the present API may be called right."""
    version, found = torchtune.__version__, []
    if kept != now:
        names = ", ".join(differing(kept, now)) or "its version"
        found.append(f"the public API changed ({names}): run `hatch run api`, read the difference")
    if not changelog_of(version):
        found.append(f"CHANGELOG.md of torchtune-core has no section '## {version} ...': write it")
    tags = git("tag", "--list", "torchtune-core-v*", "--sort=-v:refname").split()
    released = git("show", f"{tags[0]}:{FILE.relative_to(ROOT).as_posix()}") if tags else ""
    if released and (missing := unannounced(released, now, changelog_of(version))):
        if tags[0] == f"torchtune-core-v{version}":
            found.append(f"{version} is released: raise the version in torchtune/__init__.py")
        found.append(f"say in CHANGELOG.md, under {version}, what became of {', '.join(missing)}")
    return found


def missing_from(inventory: Path, now: str) -> list[str]:
    """List the public names that a built reference (Sphinx's objects.inv) does not describe."""
    body = inventory.read_bytes().split(b"\n", 4)[4]
    described = {line.split(" ")[0] for line in zlib.decompress(body).decode().splitlines()}
    return [name for name in blocks_by_name(now) if name not in described]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the file")
    parser.add_argument("--file", type=Path, default=FILE, help="the text file")
    parser.add_argument("--reference", type=Path, help="a built reference, to compare instead")
    arguments = parser.parse_args()
    now = generate()
    if arguments.write:
        arguments.file.write_text(now, encoding="utf-8")
    if arguments.reference:
        missing = missing_from(arguments.reference, now)
        found = [
            f"the reference does not describe {name}: it needs a docstring" for name in missing
        ]
    else:
        found = faults(arguments.file.read_text(encoding="utf-8"), now)
    for fault in found:
        print(fault, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
