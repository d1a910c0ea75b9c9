"""Every command and program in the documentation runs, page by page, on a tiny model.

A page is one folder and one sequence: its `sh` and `python` blocks run in order, beside a model in
`my-model` and rows in `my.jsonl`, and a fake hub, which has that model under a name that pages
use and another whose terms nobody accepted. A comment before a block says what else is meant:
`<!-- not run: reason -->`, `<!-- exits 2 -->`, `<!-- file: my_run.yaml -->` (the block is a file).
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from fake_hub.server import FakeHub
from torchtune.testing import tiny_checkpoint

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("packages/*/*.md"))]
BLOCK = re.compile(r"(?:^<!-- (.+?) -->\n)?^```(sh|python|yaml|json)\n(.*?)^```$", re.M | re.S)
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


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(map(wanted, blocks(page)))],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_what_a_page_says_runs(page, folder):
    for block in filter(wanted, blocks(page)):
        run(block, folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [target for target in targets if not (page.parent / target).exists()] == []
