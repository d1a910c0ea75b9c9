"""`tune validate`: which recipe it takes, what it prints, and its exit codes."""

import pytest

RECIPE = '''"""A recipe."""
from dataclasses import dataclass
from torchtune.config import TuneArgumentParser
import no_such_package

@dataclass
class Params:
    {key}: int = 1
    checkpoint: str | None = None
    device: str = "auto"

TuneArgumentParser(Params)
'''


@pytest.fixture
def recipes(plugin):
    """A plug-in with two recipes; neither can be imported, as their needs are not installed."""
    for name, key in {"toy": "batch_size", "other": "rows"}.items():
        (plugin / f"toy_plugin/recipes/{name}.py").write_text(RECIPE.format(key=key))
    return plugin


def write(tmp_path, text):
    (tmp_path / "here").mkdir(exist_ok=True)
    (tmp_path / "here/my.yaml").write_text(text)


def test_the_recipe_is_the_one_whose_params_hold_all_keys(tune, recipes, tmp_path):
    write(tmp_path, "rows: 3\n")
    done = tune("validate", "my.yaml", path=recipes)
    assert (done.returncode, done.stdout) == (0, "my.yaml: no faults (recipe other)\n")


def test_the_config_may_name_its_recipe_and_the_word_given_goes_before_it(tune, recipes, tmp_path):
    write(tmp_path, "recipe: toy\ncheckpoint: null\n")
    assert "(recipe toy)" in tune("validate", "my.yaml", path=recipes).stdout
    assert "(recipe other)" in tune("validate", "other", "my.yaml", path=recipes).stdout


def test_a_shipped_configs_recipe_is_its_folders(tune, recipes):
    done = tune("validate", "tiny/8b", path=recipes)
    assert done.stdout.endswith("tiny/8b.yaml: no faults (recipe toy)\n")


def test_all_faults_come_with_their_lines(tune, recipes, tmp_path):
    write(tmp_path, "batch_size: many\nchekpoint: x\n")
    done = tune("validate", "toy", "my.yaml", "nothing=1", path=recipes)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("error[") == 3
    assert "my.yaml:1" in done.stderr
    assert "my.yaml:2" in done.stderr
    assert "did you mean 'checkpoint'?" in done.stderr


def test_what_only_this_machine_lacks_is_a_note_unless_asked_for(tune, recipes, tmp_path):
    write(tmp_path, "batch_size: 2\n")
    words = ["validate", "toy", "my.yaml", "checkpoint=./none"]
    done = tune(*words, path=recipes)
    assert (done.returncode, done.stdout) == (0, "my.yaml: no faults (recipe toy)\n")
    assert done.stderr == (
        "note[E-FILE]: './none' is not on this machine\n  at checkpoint, command line\n"
        "next: tune run toy --config my.yaml checkpoint=./none\n"
    )
    done = tune(*words, "--here", path=recipes)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error[E-FILE]: './none' is not on this machine")


def test_a_device_that_is_not_here_is_found_by_here(tune, recipes, tmp_path):
    write(tmp_path, "device: mps\n")
    assert tune("validate", "toy", "my.yaml", path=recipes).returncode == 0
    done = tune("validate", "toy", "my.yaml", "--here", path=recipes)
    assert done.returncode == 3
    assert done.stderr.startswith("error[E-DEVICE")


def test_without_a_file_the_words_are_those_of_a_run(tune, recipes, tmp_path):
    words = ["toy", "--batch-size", "3", "checkpoint=."]
    done = tune("validate", *words, path=recipes)
    assert (done.returncode, done.stdout) == (0, "toy: no faults\n")
    assert done.stderr == "next: tune run toy --batch-size 3 checkpoint=.\n"
    write(tmp_path, "batch_size: many\n")
    done = tune("validate", "toy", "chekpoint=.", "--config", "my.yaml", path=recipes)
    assert (done.returncode, done.stderr.count("error[")) == (2, 2)


def test_no_word_at_all_is_wrong_usage(tune, recipes):
    done = tune("validate", path=recipes)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error[E-USAGE]: tune validate: a recipe or a config is needed")
