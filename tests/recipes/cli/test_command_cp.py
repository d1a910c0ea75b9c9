"""`tune cp`: what it writes, and what it refuses to write over."""

import pytest
from torchtune_recipes import __version__

TOY = '# Copied from toy-plugin 1.2: recipes/toy.py\n"""Play with a model."""\nprint("toy runs")\n'


@pytest.fixture
def here(tmp_path):
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def test_a_copy_names_the_package_and_version_it_came_from(tune, plugin, here):
    done = tune("cp", "toy", "my_toy", path=plugin)
    assert (done.returncode, done.stdout) == (0, "my_toy.py\n")
    assert done.stderr == "run it: tune run my_toy.py --help\n"
    assert (here / "my_toy.py").read_text() == TOY


def test_our_own_recipe_is_copied_under_its_name_into_the_current_folder(tune, here):
    assert tune("cp", "sft").stdout == "sft.py\n"
    header = f"# Copied from torchtune-recipes {__version__}: recipes/sft.py\n"
    assert (here / "sft.py").read_text().startswith(header)


def test_a_copied_recipe_runs(tune, plugin, here):
    tune("cp", "toy", path=plugin)
    assert tune("cat", "toy.py").stdout == TOY


def test_a_config_says_how_it_is_run(tune, plugin, here):
    done = tune("cp", "tiny/8b", "sub/my.yaml", "--make-parents", path=plugin)
    assert done.stderr == "run it: tune run toy --config sub/my.yaml\n"
    header = "# Copied from toy-plugin 1.2: configs/toy/tiny/8b.yaml\n"
    assert (here / "sub/my.yaml").read_text() == header + "# The small toy\nbatch_size: 2\n"


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
