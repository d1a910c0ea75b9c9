"""`tune cp`: what it writes, and what it refuses to write over."""

import hashlib
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from torchtune_recipes import __version__

BODY = '"""Play with a model."""\nprint("toy runs")\n'


def header(source, text):
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"# Copied from {source} (sha256 {digest})\n"


TOY = header("toy-plugin 1.2: recipes/toy.py", BODY) + BODY


@pytest.fixture
def here(tmp_path):
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def test_a_copy_names_the_package_and_version_it_came_from(tune, plugin, here):
    done = tune("cp", "toy", "my_toy", path=plugin)
    assert (done.returncode, done.stdout) == (0, "my_toy.py\n")
    assert done.stderr == "next: tune run my_toy.py --help\n"
    assert (here / "my_toy.py").read_text() == TOY


def test_our_own_recipe_is_copied_under_its_name_into_the_current_folder(tune, here):
    assert tune("cp", "sft").stdout == "sft.py\n"
    first, _, rest = (here / "sft.py").read_text().partition("\n")
    assert header(f"torchtune-recipes {__version__}: recipes/sft.py", rest) == first + "\n"


def test_a_copied_recipe_runs(tune, plugin, here):
    tune("cp", "toy", path=plugin)
    assert tune("cat", "toy.py").stdout == TOY


def test_a_config_says_how_it_is_run(tune, plugin, here):
    done = tune("cp", "tiny/8b", "sub/my 8b.yaml", "--make-parents", path=plugin)
    assert done.stderr == "next: tune run toy --config 'sub/my 8b.yaml'\n"
    text = "# The small toy\nbatch_size: 2\n"
    first = header("toy-plugin 1.2: configs/toy/tiny/8b.yaml", text)
    assert (here / "sub/my 8b.yaml").read_text() == first + text


def test_a_copied_config_still_leads_an_editor_to_the_schema(tune, here):
    tune("cp", "llama3_2/1b_lora", "my run.yml")
    line = (here / "my run.yml").read_text().splitlines()[1]
    start, _, address = line.partition("=")
    assert start == "# yaml-language-server: $schema"
    schema = Path(unquote(urlparse(address).path))
    assert (schema.is_absolute(), schema.name, schema.is_file()) == (True, "sft.json", True)


def test_a_copied_config_has_no_faults(tune):
    tune("cp", "llama3_2/1b_lora", "my.yaml")
    assert tune("validate", "my.yaml").returncode == 0


def test_a_file_that_is_there_is_overwritten_only_by_force(tune, plugin, here):
    (here / "toy.py").write_text("mine")
    done = tune("cp", "toy", path=plugin)
    assert done.returncode == 2
    assert done.stderr == (
        "error[E-FILE-EXISTS]: toy.py exists already\n  --force overwrites it, -n leaves it\n"
    )
    assert tune("cp", "toy", "-n", path=plugin).returncode == 0
    assert (here / "toy.py").read_text() == "mine"
    assert tune("cp", "toy", "--force", path=plugin).returncode == 0
    assert (here / "toy.py").read_text() == TOY


def test_a_missing_folder_is_made_only_when_asked(tune, plugin):
    done = tune("cp", "toy", "a/b/", path=plugin)
    assert done.returncode == 3
    assert done.stderr == (
        "error[E-NO-FOLDER]: the folder a/b does not exist\n  --make-parents makes it\n"
    )
    assert tune("cp", "toy", "a/b/", "--make-parents", path=plugin).stdout == "a/b/toy.py\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (
            ["toy", "toy.yaml"],
            2,
            "a copy of toy is a .py file, not toy.yaml\n  did you mean toy.py?",
        ),
        (["toy", "--force", "-n"], 2, "not allowed with argument"),
        (["toy", "file/toy.py"], 3, "the folder file does not exist"),
        (["toy", "file/toy.py", "--make-parents"], 1, "cannot write file/toy.py"),
        (["toyy"], 2, "did you mean 'toy'?"),
    ],
)
def test_what_cannot_be_copied_is_said_in_a_line(tune, plugin, here, words, code, said):
    (here / "file").write_text("no folder")
    done = tune("cp", *words, path=plugin)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_shipped_file_is_not_written_over_with_its_own_copy(tune, plugin):
    own = plugin / "toy_plugin/recipes/toy.py"
    done = tune("cp", "toy", str(own), "--force", path=plugin)
    assert done.returncode == 2
    assert own.read_text() == BODY


def test_a_home_that_cannot_be_written_does_not_stop_a_copy(tune, plugin, here):
    (here / "cache").write_text("no folder")
    done = tune("cp", "toy", path=plugin, XDG_CACHE_HOME=str(here / "cache"))
    assert (done.returncode, (here / "toy.py").read_text()) == (0, TOY)
