"""The text file of core's public names is true, and a change is told what it needs."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "ci" / "public_api.py"
FILE = ROOT / "packages" / "torchtune-core" / "api.txt"


def check(file: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), "--file", str(file)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def public_api():
    spec = importlib.util.spec_from_file_location("public_api", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_file_names_the_public_api_of_today():
    done = check(FILE)
    assert done.returncode == 0, done.stderr


def test_a_changed_signature_is_named_with_what_to_do(tmp_path):
    old = FILE.read_text(encoding="utf-8").replace(
        "def from_pretrained(", "def from_pretrained(old, "
    )
    (tmp_path / "api.txt").write_text(old, encoding="utf-8")
    done = check(tmp_path / "api.txt")
    assert done.returncode == 1
    assert "torchtune.models.from_pretrained" in done.stderr
    assert "hatch run api" in done.stderr


def test_every_room_lists_its_public_names(public_api):
    assert [room.__name__ for room in public_api.rooms() if not hasattr(room, "__all__")] == []


RELEASED = "torchtune.a\n    def f(x)\n    class C()\n        def g(self)\n"
NOW = "torchtune.a\n    def f(x, y)\n    class C()\n        def h(self)\n    def new()\n"


@pytest.mark.parametrize(
    ("now", "changelog", "missing"),
    [
        (RELEASED, "", []),
        (NOW, "", ["torchtune.a.C", "torchtune.a.f", "torchtune.a.new"]),
        (NOW, "`f` takes y, `C.h` replaces g", ["torchtune.a.new"]),
        (NOW, "f, C, new", []),
    ],
)
def test_a_change_since_the_last_release_must_be_in_the_changelog(
    public_api, now, changelog, missing
):
    assert public_api.unannounced(RELEASED, now, changelog) == missing


def test_every_room_has_its_page_in_the_reference(public_api):
    pages = [page.read_text(encoding="utf-8") for page in ROOT.glob("docs/reference/*.md")]
    described = {line.split()[-1] for page in pages for line in page.splitlines() if "auto" in line}
    assert {room.__name__ for room in public_api.rooms()} - described == set()
