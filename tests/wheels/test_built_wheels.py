"""The three wheels as a user gets them: built, unpacked, asked from outside the source tree."""

import email
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    "torchtune-core": "torchtune",
    "torchtune-recipes": "torchtune_recipes",
    "torchtune-integrations": "torchtune_integrations",
}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, zipfile.ZipFile]:
    """The three wheels, built from this tree."""
    folder = tmp_path_factory.mktemp("wheels")
    for name in SOURCES:
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        done = subprocess.run(build, cwd=ROOT / "packages" / name, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    files = {name: next(folder.glob(f"{name.replace('-', '_')}-*.whl")) for name in SOURCES}
    return {name: zipfile.ZipFile(path) for name, path in files.items()}


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory) -> Path:
    """A folder that holds all three, before the source tree on the path of `python`."""
    folder = tmp_path_factory.mktemp("installed")
    for wheel in wheels.values():
        wheel.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def core_alone(wheels, tmp_path_factory) -> Path:
    """A folder that holds core and nothing else of ours."""
    folder = tmp_path_factory.mktemp("core_alone")
    wheels["torchtune-core"].extractall(folder)
    return folder


@pytest.fixture(scope="module")
def recipes_alone(wheels, tmp_path_factory) -> Path:
    """The interpreter of an environment that holds core and recipes, and not even what they need."""
    folder = tmp_path_factory.mktemp("recipes_alone")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    (site,) = folder.glob("[Ll]ib/**/site-packages")
    for name in ("torchtune-core", "torchtune-recipes"):
        wheels[name].extractall(site)
    return folder / ("Scripts" if os.name == "nt" else "bin") / "python"


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run an interpreter that finds our packages in `folder` first, and in `folder` alone."""
    hide = "import sys; sys.path[:] = [p for p in sys.path if not p.endswith('/src')]"
    (folder / "sitecustomize.py").write_text(hide, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


@pytest.mark.parametrize("name", SOURCES)
def test_a_wheel_holds_every_file_of_its_package_and_no_other(name, wheels):
    source = ROOT / "packages" / name / "src"
    tracked = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    shipped = {path for path in wheels[name].namelist() if ".dist-info/" not in path}
    assert shipped == tracked
    assert f"{SOURCES[name]}/py.typed" in shipped


@pytest.mark.parametrize("name", SOURCES)
def test_a_wheel_carries_its_licence_and_readme(name, wheels):
    assert metadata(wheels[name])["License-Expression"] == "BSD-3-Clause"
    assert len(metadata(wheels[name]).get_payload()) > 200  # the page that PyPI shows
    assert any(path.endswith("licenses/LICENSE") for path in wheels[name].namelist())


@pytest.mark.parametrize("name", ["torchtune-recipes", "torchtune-integrations"])
def test_a_package_needs_core_of_one_major_version_and_nothing_else(name, wheels):
    needs = [line for line in metadata(wheels[name]).get_all("Requires-Dist") if ";" not in line]
    version = metadata(wheels["torchtune-core"])["Version"]
    major, minor = map(int, version.split(".")[:2])
    assert len(needs) == 1
    assert needs[0].startswith("torchtune-core")
    assert f"<{major + 1}" in needs[0]
    lowest = needs[0].split(">=")[1].split(",")[0]
    assert tuple(map(int, lowest.split("."))) <= (major, minor)


def test_core_never_asks_for_transformers_or_accelerate(wheels):
    needs = " ".join(metadata(wheels["torchtune-core"]).get_all("Requires-Dist"))
    assert not {"transformers", "accelerate", "peft"} & set(needs.replace(">", " ").split())


def test_core_works_without_the_other_two(core_alone):
    rooms = [path.parent.name for path in (core_alone / "torchtune").glob("*/__init__.py")]
    rooms += [path.stem for path in (core_alone / "torchtune").glob("[!_]*.py")]
    code = "import torchtune; print(torchtune.__file__)\n"
    code += "\n".join(f"import torchtune.{room}" for room in rooms)
    code += "\nimport importlib.util as util"
    code += "\nassert not util.find_spec('torchtune_recipes')"
    code += "\nassert not util.find_spec('torchtune_integrations')"
    done = python(core_alone, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(core_alone))


@pytest.mark.parametrize("name", ["recipes", "recipes.sft", "recipes.generate"])
def test_an_installed_recipe_cannot_be_imported(name, installed):
    done = python(installed, "-c", f"import torchtune_recipes.{name}")
    assert done.returncode == 1
    assert "tune cp" in done.stderr.splitlines()[-1]


def test_no_wheel_offers_code_outside_its_package(installed):
    # A folder without __init__.py is importable all the same, as a namespace package.
    top = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert top - {"sitecustomize.py", "__pycache__"} == set(SOURCES.values())
    folders = {
        path.parent for name in SOURCES.values() for path in installed.glob(f"{name}/**/*.py")
    }
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("recipe", ["sft", "generate"])
def test_an_installed_recipe_runs_as_a_file(recipe, installed):
    done = python(installed, f"torchtune_recipes/recipes/{recipe}.py", "--help")
    assert done.returncode == 0, done.stderr
    assert "checkpoint" in done.stdout


def test_the_installed_command_lists_recipes_and_configs(installed):
    code = "from torchtune_recipes.cli.main import main; raise SystemExit(main(['ls']))"
    done = python(installed, "-c", code)
    assert done.returncode == 0, done.stderr
    shipped = installed.glob("torchtune_recipes/configs/**/*.yaml")
    assert all(path.stem in done.stdout for path in shipped)
    assert "sft" in done.stdout


@pytest.mark.parametrize(
    ("words", "extra"),
    [(["evaluate", "--tasks", "arc_easy"], "eval"), (["push_to_hub", "--repo", "me/mine"], "hub")],
)
def test_without_the_integrations_a_command_says_what_brings_it(words, extra, recipes_alone):
    command = [str(recipes_alone), "-m", "torchtune_recipes.cli.main", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert f'pip install "torchtune-integrations[{extra}]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_every_extra_is_tested_alone(wheels):
    extras = metadata(wheels["torchtune-integrations"]).get_all("Provides-Extra")
    workflow = (ROOT / ".github/workflows/integrations.yml").read_text(encoding="utf-8")
    script = (ROOT / "ci/test.sh").read_text(encoding="utf-8")
    assert f"extra: [{', '.join(extras)}]" in workflow
    assert f"all_extras={','.join(extras)}\n" in script
    for extra in extras:
        tests = re.findall(rf"^{extra}\) .*tests=(\S+)", script, re.MULTILINE)
        assert (ROOT / "tests" / tests[0]).exists()
