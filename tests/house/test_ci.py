"""CI does what it says: triggers, versions of Python, tags, the README's command."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("core", "recipes", "integrations")


def workflow(name: str) -> dict:
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=yaml.BaseLoader)  # `on` stays a word


@pytest.fixture(scope="module")
def versions():
    spec = importlib.util.spec_from_file_location("versions", ROOT / "ci" / "versions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_tested_when_it_or_what_it_needs_changes(package):
    triggers = workflow(package)["on"]
    assert triggers["push"]["paths"] == triggers["pull_request"]["paths"]
    needed = {f"packages/torchtune-{name}/**" for name in {package, "core"}}
    named = {path for path in triggers["push"]["paths"] if path.startswith("packages/")}
    assert named == needed
    assert f"tests/{package}/**" in triggers["push"]["paths"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_path_that_triggers_is_there(package):
    for path in workflow(package)["on"]["push"]["paths"]:
        assert any(ROOT.glob(path.removesuffix("/**"))), path


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_tested_on_every_python_it_claims(package):
    pyproject = (ROOT / f"packages/torchtune-{package}/pyproject.toml").read_text(encoding="utf-8")
    assert 'requires-python = ">=3.10"' in pyproject
    matrix = workflow(package)["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.10", "3.11", "3.12", "3.13"]


def test_the_readme_names_the_commands_that_ci_runs():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    jobs = (ROOT / ".github" / "workflows" / "everything.yml").read_text(encoding="utf-8")
    assert "pip install hatch && hatch run test" in readme
    assert '"$hatch" run test' in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "pip install hatch && hatch run quickstart" in readme
    assert "hatch run quickstart" in jobs


def test_development_uses_one_version_of_torch():
    kept = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    wanted = (ROOT / "hatch.toml").read_text(encoding="utf-8")
    assert re.findall(r"^torch==\S+", kept, re.MULTILINE) == re.findall(r"torch==[\d.]+", wanted)


def test_an_unknown_package_is_wrong_usage():
    done = subprocess.run(["bash", ROOT / "ci/test.sh", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no package 'nothing'" in done.stderr


def test_versions_are_ordered_as_numbers(versions):
    assert versions.numbers("0.10.0") > versions.numbers("0.9.3")
    assert versions.numbers("1.0.0rc1") == (1, 0, 0)


@pytest.mark.parametrize(
    ("tags", "lowest"),
    [
        ([], "HEAD"),  # before the first release
        (["torchtune-core-v0.1.0", "torchtune-core-v0.2.0"], "torchtune-core-v0.1.0"),
        (["torchtune-core-v0.0.9", "torchtune-core-v0.1.3"], "torchtune-core-v0.1.3"),
    ],
)
def test_the_lowest_core_is_the_first_that_the_range_allows(versions, tags, lowest):
    assert versions.lowest_core("torchtune-recipes", tags) == lowest


@pytest.mark.parametrize(
    ("tag", "complaint"),
    [
        ("torchtune-v1.0.0", "no package for tag"),
        ("torchtune-core-v99.0.0", "does not fit"),
        ("v1.0.0", "no package for tag"),
    ],
)
def test_a_tag_that_does_not_fit_releases_nothing(versions, tag, complaint):
    with pytest.raises(SystemExit, match=complaint):
        versions.check_tag(tag)
