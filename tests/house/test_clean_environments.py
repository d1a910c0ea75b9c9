"""What a package's tests import is in the clean environment that `ci/test.sh` makes for them."""

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = (ROOT / "ci/test.sh").read_text(encoding="utf-8")


def needs(distribution: str) -> set[str]:
    """Return what a distribution needs; extras count where it is one of ours."""
    try:
        lines = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:  # for another system
        return set()
    ours = distribution.startswith("torchtune-")
    names = [re.match(r"[\w.-]+", line)[0] for line in lines if ours or "extra ==" not in line]
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


def installed(package: str) -> set[str]:
    """Return what a clean environment has: what is declared, and what the script adds."""
    wanted = {"torchtune-core", f"torchtune-{package}"}
    wanted |= {"torchtune-recipes"} if package == "integrations" else set()
    for added in re.findall(r"pip install --quiet \\\n +(.+)", SCRIPT):
        wanted |= set(added.split())
    found: set[str] = set()
    while wanted:
        found |= wanted
        wanted = {need for name in wanted for need in needs(name)} - found
    return found


def imported(path: Path) -> set[str]:
    """Return the top-level names that a file imports when it is loaded."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names


@pytest.fixture(scope="module")
def brought_by():
    """The distributions that bring a name to import; editable ones are not in it."""
    return metadata.packages_distributions()


@pytest.mark.parametrize(
    ("package", "ours"),
    [
        ("core", {"torchtune"}),
        ("recipes", {"torchtune", "torchtune_recipes"}),
        ("integrations", {"torchtune", "torchtune_recipes", "torchtune_integrations"}),
    ],
)
def test_what_a_package_s_tests_import_is_there(package, ours, brought_by):
    folder = ROOT / "tests" / package
    here = ours | {path.stem for path in [*(ROOT / "tests").iterdir(), *folder.rglob("*.py")]}
    here |= {path.stem for path in (ROOT / "ci").glob("*.py") if f"/ci/{path.name}" in SCRIPT}
    has = installed(package)
    for path in folder.rglob("*.py"):
        for name in imported(path) - here:
            distributions = {found.replace("_", "-").lower() for found in brought_by.get(name, [])}
            assert distributions & has, f"{path}: {name} is not in the environment of ci/test.sh"
