"""Every command, program and config in the documentation is tried, page by page, on a tiny model.

A page is one folder and one sequence: its `sh` and `python` blocks run in order, beside a model in
`my-model` and rows in `my.jsonl`, and a fake hub, which has that model under a name that pages
use and another whose terms nobody accepted. A comment before a block says what else is meant:
`<!-- not run: reason -->`, `<!-- exits 2 -->`, `<!-- file: my_run.yaml -->` (the block is a file).
A YAML block with a key of a recipe is a config, or a part of one, and must have no fault, unless it
is the file `broken.yaml`.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from fake_hub.server import FakeHub
from torchtune.config import read_params, validate
from torchtune.testing import tiny_checkpoint
from torchtune_recipes import catalog

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("packages/*/*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- (.+?) -->\n)?^```(sh|python|yaml|json|text|diff)\n(.*?)^```$", re.M | re.S
)
EVERY_TIME = {"README.md", "docs/data.md"}
"""Pages that the default suite runs; the others run with the slow tests."""

RUNNERS = {"sh": ("bash", "-euo", "pipefail", "-c"), "python": (sys.executable, "-c")}


class Block(NamedTuple):
    note: str
    language: str
    code: str


def blocks(page: Path) -> list[Block]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [Block(*parts) for parts in found]


def wanted(block: Block) -> bool:
    return not block.note.startswith("not run: ") and (
        block.language in RUNNERS or block.note.startswith("file: ")
    )


@pytest.fixture
def folder(tmp_path: Path, fake_hub: FakeHub) -> Path:
    model = tiny_checkpoint(tmp_path / "page" / "my-model")
    fake_hub.add("HuggingFaceTB/SmolLM2-135M-Instruct", model)
    fake_hub.add("meta-llama/Llama-3.2-1B-Instruct", {"config.json": "{}"}, gated="manual")
    rows = [{"instruction": f"Repeat: {n}", "output": str(n)} for n in range(24)]
    (tmp_path / "page" / "my.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tmp_path / "page"


def run(block: Block, folder: Path) -> None:
    if block.note.startswith("file: "):
        (folder / block.note.removeprefix("file: ")).write_text(block.code, encoding="utf-8")
        return
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "CUDA_VISIBLE_DEVICES": ""}
    command = [*RUNNERS[block.language], block.code]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    expected = int(block.note.removeprefix("exits ")) if block.note.startswith("exits ") else 0
    assert done.returncode == expected, f"{block.code}\n{done.stdout}\n{done.stderr}"


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def each_time_or_slow(page: Path):
    return pytest.param(page, marks=[] if name(page) in EVERY_TIME else [pytest.mark.slow])


@pytest.mark.parametrize(
    "page",
    [each_time_or_slow(page) for page in PAGES if any(map(wanted, blocks(page)))],
    ids=name,
)
def test_what_a_page_says_runs(page, folder):
    for block in filter(wanted, blocks(page)):
        run(block, folder)


def configs(page: Path) -> list[tuple[str, str]]:
    """Return the recipe and the text of each config on a page."""
    found = []
    for block in blocks(page):
        keys = yaml.safe_load(block.code) if block.language == "yaml" else None
        if not isinstance(keys, dict) or block.note == "file: broken.yaml":
            continue
        recipe = keys.get("recipe", "sft")
        if set(keys) & {
            field.name for field in fields(read_params(catalog.resolve_recipe(recipe)))
        }:
            found.append((recipe, block.code))
    return found


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if configs(page)],
    ids=name,
)
def test_a_config_on_a_page_has_no_fault(page, tmp_path):
    for recipe, text in configs(page):
        (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
        needed = {"checkpoint": "./my-model", "dataset": "./my.jsonl"} if recipe == "sft" else {}
        rest = [f"{key}={value}" for key, value in needed.items() if f"{key}:" not in text]
        faults, _ = validate(catalog.resolve_recipe(recipe), tmp_path / "config.yaml", rest)
        assert [str(fault) for fault in faults] == [], text


def test_a_page_names_keys_and_tests_that_exist():
    code = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/test_*.py"))
    keys = {field.name for field in fields(read_params(catalog.resolve_recipe("sft")))}
    for page in PAGES:
        named = re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8"))
        assert [name for name in named if f"def {name}(" not in code] == []
    rows = re.findall(r"^\| .+ \| (.+) \|$", (ROOT / "docs/migrating.md").read_text(), re.M)
    ours = {key for row in rows for key in re.findall(r"`([a-z_]+)(?:[.:][^`]*)?`", row)}
    assert ours - keys - {"sft", "column_map", "o_proj", "lm_head"} == set()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_between_pages_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [target for target in targets if not (page.parent / target).exists()] == []
