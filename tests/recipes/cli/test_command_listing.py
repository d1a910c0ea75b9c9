"""`tune`, `tune ls`, `tune cat` and what a plug-in adds to them."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from torchtune_recipes import __version__


def test_a_plug_in_is_listed_after_ours_without_being_imported(tune, plugin):
    listed = tune("ls", path=plugin).stdout.splitlines()
    assert [line.split(None, 1) for line in listed[-3:]] == [
        ["toy", "Play with a model."],
        ["tiny/8b", "The small toy"],
        ["tiny/70b", "The large toy"],
    ]


def test_one_recipe_or_one_family_is_listed_alone(tune, plugin):
    assert tune("ls", "toy", path=plugin).stdout == (
        "toy         Play with a model.\n  tiny/8b   The small toy\n  tiny/70b  The large toy\n"
    )
    listed = tune("ls", "--family", "llama3_2", path=plugin).stdout.splitlines()
    names = [line.split()[0] for line in listed]
    assert names == [
        "sft",
        *(f"llama3_2/{n}" for n in ("1b_full", "1b_lora", "3b_full", "3b_lora")),
    ]
    assert tune("ls", "sft", "--family", "llama3_2").stdout.splitlines() == listed


def test_a_schema_line_is_no_title(tune):
    assert "yaml-language-server" not in tune("ls").stdout


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["sfft"], "error[E-NO-RECIPE]: no recipe is called 'sfft'\n  did you mean 'sft'?\n"),
        (
            ["llama2"],
            "error[E-NO-RECIPE]: no recipe is called 'llama2'\n  did you mean --family llama2?\n",
        ),
        (
            ["--family", "lama2"],
            "error[E-NO-FAMILY]: no family is called 'lama2'\n  did you mean 'llama2'?\n",
        ),
        (
            ["toy", "--family", "large"],
            "error[E-NO-FAMILY]: no family is called 'large'\n  there are tiny\n",
        ),
    ],
)
def test_a_wrong_recipe_or_family_names_the_right_ones(tune, plugin, words, error):
    done = tune("ls", *words, path=plugin)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", error)


def test_a_reader_that_leaves_early_is_no_traceback(tune, tmp_path):
    command = f"{sys.executable} -m torchtune_recipes.cli.main ls | head -1 >/dev/null"
    for _ in range(3):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert "BrokenPipe" not in done.stderr


def test_json_lists_the_same_for_programs(tune, plugin):
    entries = json.loads(tune("ls", "--json", path=plugin).stdout)
    assert entries[-1] == {
        "kind": "config",
        "name": "tiny/70b",
        "recipe": "toy",
        "path": str(plugin / "toy_plugin/configs/toy/tiny/70b.yaml"),
        "about": "The large toy",
        "package": "toy-plugin 1.2",
        "family": "tiny",
    }
    assert {entry["package"] for entry in entries[:-3]} <= {f"torchtune-recipes {__version__}"}


def test_help_names_our_commands_and_a_plug_ins(tune, plugin):
    shown = tune("--help", path=plugin)
    assert shown.returncode == 0
    table = dict(line.split(None, 1) for line in shown.stdout.splitlines() if line[:2] == "  ")
    assert table["cp"] == "Copy a recipe or a config, to be changed and run as it is."
    assert table["greet"] == "from toy-plugin"
    assert table["toy"] == "Play with a model."


def test_a_plug_ins_command_is_described_by_its_own_first_line(tune, plugin):
    (plugin / "toy_plugin/greet.py").write_text('"""Greet someone."""\nraise RuntimeError\n')
    assert "  greet        Greet someone.\n" in tune("--help", path=plugin).stdout


def test_help_follows_the_journey(tune):
    lines = tune("--help").stdout.splitlines()
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    journey = ["ls", "data", "cp", "run", "evaluate", "push_to_hub", "sft"]
    assert [name for name in names if name in journey] == journey


def test_no_word_at_all_is_wrong_usage(tune):
    shown = tune()
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr.startswith("usage: tune COMMAND")


def test_a_recipe_of_a_plug_in_is_run_by_name(tune, plugin):
    assert tune("cat", "toy", path=plugin).stdout == '"""Play with a model."""\nprint("toy runs")\n'


def test_a_config_is_printed_with_sorted_keys(tune, tmp_path):
    (tmp_path / "my.yaml").write_text("seed: 1\nbatch_size: 2\n")
    assert tune("cat", "--sort", str(tmp_path / "my.yaml")).stdout == "batch_size: 2\nseed: 1\n"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            ["lss"],
            "error[E-NO-COMMAND]: `tune` has no command and no recipe 'lss'\n"
            "  did you mean 'ls'?\n",
        ),
        (
            ["data"],
            "error[E-NO-COMMAND]: `tune` has no command and no recipe 'data'\n"
            "  did you mean `tune data check`?\n",
        ),
        (
            ["frobnicate"],
            "error[E-NO-COMMAND]: `tune` has no command and no recipe 'frobnicate'\n"
            "  `tune --help` shows them\n",
        ),
        (
            ["cat", "llama3_2/1b_lra"],
            "error[E-NO-ENTRY]: no recipe or config is called 'llama3_2/1b_lra'\n"
            "  did you mean 'llama3_2/1b_lora'?\n",
        ),
        (
            ["cp"],
            "error[E-USAGE]: tune cp: the following arguments are required: RECIPE|CONFIG\n"
            "  see `tune cp --help`\n",
        ),
    ],
)
def test_a_wrong_word_names_the_nearest_right_one(tune, words, error):
    done = tune(*words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", error)


@pytest.fixture
def bare_folder(tmp_path):
    """What `python -S` finds: our two packages and what their light parts need, nothing else."""
    (tmp_path / "bare").mkdir()
    for name in ("torchtune", "torchtune_recipes", "yaml"):
        spec = importlib.util.find_spec(name)
        (tmp_path / "bare" / name).symlink_to(spec.submodule_search_locations[0])
    return tmp_path / "bare"


@pytest.mark.parametrize(
    ("command", "extra"), [("evaluate", "eval"), ("export", "gguf"), ("push_to_hub", "hub")]
)
def test_a_command_of_a_package_that_is_not_there_says_what_brings_it(bare_folder, command, extra):
    def tune(word):
        code = [sys.executable, "-S", "-m", "torchtune_recipes.cli.main", word]
        there = {**os.environ, "PYTHONPATH": str(bare_folder)}
        return subprocess.run(code, env=there, capture_output=True, text=True)

    done = tune(command)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        f"error[E-COMMAND-PACKAGE]: `tune {command}` needs the package 'torchtune-integrations', "
        f'which is not installed\n  pip install "torchtune-integrations[{extra}]"\n'
    )
    assert f'(pip install "torchtune-integrations[{extra}]")' in tune("--help").stdout


def test_a_command_whose_package_is_missing_says_what_brings_it(tune, plugin):
    (plugin / "toy_plugin/__init__.py").write_text("")
    (plugin / "toy_plugin/needy.py").write_text("import no_such_package\n")
    done = tune("needy", path=plugin)
    assert done.returncode == 3
    assert done.stderr == (
        "error[E-COMMAND-PACKAGE]: `tune needy` needs the package 'no_such_package', "
        "which is not installed\n"
        '  pip install "toy-plugin[extra]"\n'
    )


def test_a_plug_ins_command_is_run(tune, plugin):
    (plugin / "toy_plugin/__init__.py").write_text("")
    (plugin / "toy_plugin/greet.py").write_text(
        '"""Greet someone."""\n'
        "def add_arguments(parser): parser.add_argument('name')\n"
        "def run(args): print('hello', args.name); return 4\n"
    )
    done = tune("greet", "world", path=plugin)
    assert (done.returncode, done.stdout) == (4, "hello world\n")


def test_the_older_package_is_named_before_anything_else(tune, plugin):
    (plugin / "torchtune-0.6.1.dist-info").mkdir()
    done = tune("ls", path=plugin)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error[E-OLD-PACKAGE]: the older package torchtune 0.6.1")
    assert "pip uninstall -y torchtune && pip install" in done.stderr
