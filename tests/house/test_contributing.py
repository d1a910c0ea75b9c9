"""CONTRIBUTING.md names commands and files that are there, and asks for few of them."""

import re
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (an? [^|]+) \| ([^|]+) \|", TEXT, re.M)
PLACES = [
    ROOT,
    *ROOT.glob("packages/*"),
    *ROOT.glob("packages/*/src"),
    *ROOT.glob("packages/*/src/*"),
]


def known_part(path: str) -> str:
    """Return a path up to the first part that whoever adds something has to name."""
    return "/".join(takewhile(lambda part: not re.search(r"[A-Z]{4}", part), path.split("/")))


def test_every_command_of_hatch_is_one():
    scripts = re.findall(r"^([\w-]+) = ", (ROOT / "hatch.toml").read_text(encoding="utf-8"), re.M)
    named = re.findall(r"hatch run ([\w-]+)", TEXT)
    assert set(named) - {*scripts, "python"} == set()


@pytest.mark.parametrize(("thing", "files"), ROWS, ids=[thing for thing, _ in ROWS])
def test_to_add_something_takes_three_files_at_most_and_they_are_there(thing, files):
    assert len(files.split("<br>")) <= 3
    paths = re.findall(r"`([\w/.]+\.(?:py|md|yaml|jinja|toml))`", files)
    missing = [p for p in paths if not any((place / known_part(p)).exists() for place in PLACES)]
    assert missing == []
