"""Each error code that the sources hold has its entry in the documentation, with a true example.

An entry is a heading that is the code, so that it can be searched for and linked, and the message as
it is printed. The example must be in the words that stand in the files where the code does.
"""

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
MESSAGE = r"```text\nerror\[(.+?)\]: (.+)\n(?:  .+\n)*```\n\n\S"
ENTRIES = {
    heading: (code, text)
    for heading, code, text in re.findall(rf"^### (E-.+)\n\n{MESSAGE}", PAGE, re.M)
}
FROM_LIBRARIES = {"E-COMPONENT-VALUE", "E-DATA-TABLE"}  # whose words are not ours


class Text(NamedTuple):
    words: str  # what is written out
    pattern: str  # what it can become


def text_of(node: ast.JoinedStr | ast.Constant) -> Text:
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    known = [str(part.value) if isinstance(part, ast.Constant) else None for part in parts]
    pattern = "".join(".*" if part is None else re.escape(part) for part in known)
    return Text("".join(filter(None, known)), pattern)


def texts(file: Path) -> list[Text]:
    """Return the texts of a file; docstrings and the pieces of an f-string are none."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    inner = [node.value for node in nodes if isinstance(node, ast.Expr)]
    inner += [part for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values]
    plain = [n for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    joined = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    return [text_of(node) for node in [*joined, *(n for n in plain if n not in inner)]]


@cache
def sources() -> dict[str, list[Text]]:
    """Return all the texts of the files that hold a code, by code."""
    found = defaultdict(list)
    for path in sorted(ROOT.glob("packages/*/src/**/*.py")):
        said = texts(path)
        codes = [re.match(r"(?:error\[)?(E(?:-[A-Z0-9]+)+)(?:\]|$)", text.words) for text in said]
        for code in {match[1] for match in codes if match}:
            found[code] += said
    return found


def test_codes_and_entries_are_the_same():
    assert sorted(ENTRIES) == sorted(sources())
    assert sorted(ENTRIES) == sorted(re.findall(r"^### (E-.+)$", PAGE, re.M))  # none lacks a part


def test_codes_stand_whole_in_the_source_so_that_they_can_be_found():
    every = [text for path in ROOT.glob("packages/*/src/**/*.py") for text in texts(path)]
    assert [text for text in every if re.match(r"E-\S*\.\*", text.pattern.replace("\\", ""))] == []


@pytest.mark.parametrize("code", sorted(sources().keys() - FROM_LIBRARIES))
def test_the_example_is_what_the_code_says(code):
    shown, said = ENTRIES[code]
    assert shown == code
    first = [text.pattern.split("\\\n")[0] for text in sources()[code] if len(text.words) > 7]
    lines = filter(None, first)
    assert any(re.match(line, said) or re.match(line, f"error[{code}]: {said}") for line in lines)


def test_entries_of_a_group_are_in_order():
    for group in PAGE.split("\n## ")[1:]:
        codes = re.findall(r"^### (E-.+)$", group, re.M)
        assert codes == sorted(codes), group.splitlines()[0]
