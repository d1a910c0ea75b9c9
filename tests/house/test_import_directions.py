"""Who may import whom: every import statement of the three packages, read from the source."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGES = Path(__file__).resolve().parents[2] / "packages"
SOURCES = sorted(PACKAGES.glob("*/src/**/*.py"))

# Inside core a room imports only from rooms above it.
ROOMS = (
    *("errors", "config", "modules", "models", "peft", "data", "losses", "distributed"),
    *("checkpoint", "training", "generation", "recipe_interfaces", "testing"),
)
STRANGERS = {("models", "peft"), ("checkpoint", "training")}
# The one arrow that points down, and only from inside a function.
LATE_ARROWS = {("models", "checkpoint")}
OTHERS = {
    "torchtune": {"torchtune_recipes", "torchtune_integrations"},
    "torchtune_recipes": {"torchtune_integrations"},
    "torchtune_integrations": {"torchtune_recipes"},
}
REFERENCES = {"transformers", "accelerate", "peft"}
PROCESSES_LIVE_IN = ("torchtune.distributed.", "torchtune.testing")
PROCESS_NAMES = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"}


@dataclass(frozen=True)
class Import:
    """One imported module: what, on which line, and whether a function holds the statement."""

    module: str
    line: int
    late: bool


def imports(tree: ast.Module, module: str) -> Iterator[Import]:
    """Yield what `module` imports, `from package import name` as ``package.name``."""
    late = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, node in late)
        elif isinstance(node, ast.ImportFrom):
            parent = ".".join(module.split(".")[: -node.level]) if node.level else ""
            base = ".".join(part for part in (parent, node.module) if part)
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno, node in late)


def module_name(path: Path) -> str:
    """Return the module name of a source file, ``package.room.file`` or ``package.room.__init__``."""
    return ".".join(path.relative_to(PACKAGES).with_suffix("").parts[2:])


def wrong_direction(source: str, target: Import) -> str:
    """Say why core's room of `source` may not import `target`, or nothing."""
    names = [name.split(".")[1:2] for name in (source, target.module)]
    if not target.module.startswith("torchtune.") or not all(names):
        return ""
    here, there = (name[0] for name in names)
    if here not in ROOMS or there not in ROOMS or here == there:
        return ""
    if tuple(sorted((here, there))) in {tuple(sorted(pair)) for pair in STRANGERS}:
        return f"{here} and {there} are strangers"
    if ROOMS.index(there) < ROOMS.index(here):
        return ""
    if (here, there) in LATE_ARROWS:
        return "" if target.late else f"{here} may import {there} only inside a function"
    return f"{here} lies above {there}"


def offences(source: str, module: str) -> list[str]:
    """List what is wrong with the imports of one file, as ``line: reason``."""
    found = []
    package = module.split(".")[0]
    for target in imports(ast.parse(source), module):
        top = target.module.split(".")[0]
        if top in OTHERS[package]:
            found.append(f"{target.line}: {package} never imports {top}")
        if top in REFERENCES:
            found.append(f"{target.line}: {top} is for tests alone")
        if package == "torchtune" and (reason := wrong_direction(module, target)):
            found.append(f"{target.line}: {reason}")
    return found


def touches_processes(source: str) -> list[str]:
    """List the lines that ask for ranks or reach `torch.distributed`, save its tensor types."""
    tree, found = ast.parse(source), []
    for target in imports(tree, "x"):
        name = f"{target.module}."
        if name.startswith("torch.distributed.") and "torch.distributed.tensor." not in name:
            found.append(f"{target.line}: imports {target.module}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in PROCESS_NAMES:
            found.append(f"{node.lineno}: reads {node.value}")
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            found.append(f"{node.lineno}: reaches torch.distributed")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_a_file_imports_only_what_its_room_may(path):
    assert offences(path.read_text(encoding="utf-8"), module_name(path)) == []


@pytest.mark.parametrize(
    "path",
    [path for path in SOURCES if not module_name(path).startswith(PROCESSES_LIVE_IN)],
    ids=module_name,
)
def test_only_distributed_knows_about_processes(path):
    assert touches_processes(path.read_text(encoding="utf-8")) == []


def test_every_room_has_its_place_in_the_order():
    core = PACKAGES / "torchtune-core" / "src" / "torchtune"
    rooms = {path.parent.name for path in core.glob("*/__init__.py")}
    rooms |= {path.stem for path in core.glob("[!_]*.py")}
    assert rooms - set(ROOMS) == set()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("torchtune.models.llama", "from torchtune.checkpoint import load_model"),
        ("torchtune.data.rows", "from ..training import adamw"),
        ("torchtune.models.llama", "import torchtune.peft"),
        ("torchtune.config.parser", "from torchtune import data"),
        ("torchtune.peft.lora", "import peft"),
        ("torchtune.training.step", "def f():\n    import torchtune_recipes.catalog"),
        ("torchtune_integrations.wandb", "from torchtune_recipes import catalog"),
    ],
)
def test_a_wrong_import_is_seen(module, source):
    assert offences(source, module) != []


def test_the_one_late_arrow_is_allowed_and_only_late():
    arrow = "from torchtune.checkpoint import load_model"
    assert offences(f"def from_pretrained():\n    {arrow}", "torchtune.models.pretrained") == []
    assert offences(arrow, "torchtune.models.pretrained") != []


@pytest.mark.parametrize(
    "source",
    [
        "import os\nrank = os.environ['RANK']",
        "import torch.distributed as dist",
        "from torch import distributed",
        "import torch\nworld = torch.distributed.get_world_size()",
    ],
)
def test_a_question_about_processes_is_seen(source):
    assert touches_processes(source) != []
