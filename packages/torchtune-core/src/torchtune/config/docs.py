"""The comments of a Params class, and the docstring of a component, as docs of keys."""

import ast
import inspect
import io
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path

__all__ = ["KeyDoc", "arguments_doc", "docs_of", "examples_of"]

HEADING = re.compile(r"^(?:-{2,}|={2,}|#+)\s*(.*?)\s*[-=#]*$")


@dataclass(frozen=True)
class KeyDoc:
    """What the source says about a key.

    Args:
        text: Its comment, in one line.
        section: The heading above it; a heading is a comment such as ``# --- model ---``.
    """

    text: str = ""
    section: str = ""


def docs_of(params: type) -> dict[str, KeyDoc]:
    """Return the documentation of each field of a dataclass, by name.

    A field's comment follows it in its line, or stands in the lines directly above. Fields of
    base classes are found in theirs. Where there is no source, nothing is found.
    """
    docs: dict[str, KeyDoc] = {}
    for base in reversed(params.__mro__):
        if "__annotations__" in vars(base) and base.__module__ != "builtins":
            docs.update(_class_docs(base))
    return docs


def examples_of(params: type) -> list[str]:
    """Return the commands that the docstring of a class's file shows, each indented there."""
    docstring = ast.get_docstring(ast.parse(_source(params))) or ""
    return re.findall(r"^ {4}((?:tune|python|torchrun) .+)$", docstring, re.MULTILINE)


def _source(params: type) -> str:
    try:
        return Path(inspect.getsourcefile(params) or "").read_text(encoding="utf-8")
    except (OSError, TypeError):
        return ""


def _class_docs(params: type) -> dict[str, KeyDoc]:
    text = _source(params)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef) and node.name == params.__name__:
            return _field_docs(node, _comments(text))
    return {}


def _comments(text: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {
        token.start[0]: token.string[1:].strip()
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def _field_docs(node: ast.ClassDef, comments: dict[int, str]) -> dict[str, KeyDoc]:
    docs, section, last = {}, "", node.lineno
    for field in node.body:
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            last = field.end_lineno or field.lineno
            continue
        above: list[str] = []
        for number in range(last + 1, field.lineno):
            heading = HEADING.match(comments.get(number, ""))
            section = heading.group(1) if heading else section
            kept = number in comments and not heading
            above = [*above, comments[number]] if kept else []
        last = field.end_lineno or field.lineno
        inside = [comments[n] for n in range(field.lineno, last + 1) if n in comments]
        docs[field.target.id] = KeyDoc(" ".join(above + inside), section)
    return docs


def arguments_doc(docstring: str) -> dict[str, str]:
    """Return what a docstring in Google's style says of each argument, in one line each.

    Args:
        docstring: Without its indentation.
    """
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", docstring, re.MULTILINE)
    entries = re.split(r"^ {4}(?=\S)", section.group(1), flags=re.MULTILINE) if section else []
    pairs = [entry.partition(":") for entry in entries if ":" in entry]
    return {name.strip(): " ".join(text.split()) for name, _, text in pairs if name.isidentifier()}
