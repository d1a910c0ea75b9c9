"""`tune`, `tune ls`, `tune cat` and what a plug-in adds to them."""

import json

import pytest
from torchtune_recipes import __version__


def test_a_plug_in_is_listed_after_ours_without_being_imported(tune, plugin):
    listed = tune("ls", path=plugin).stdout.splitlines()
    assert listed[-3:] == [
        "toy                      Play with a model.",
        "  tiny/8b                The small toy",
        "  tiny/70b               The large toy",
    ]


def test_json_lists_the_same_for_programs(tune, plugin):
    entries = json.loads(tune("ls", "--json", path=plugin).stdout)
    assert entries[-1] == {
        "kind": "config",
        "name": "tiny/70b",
        "recipe": "toy",
        "path": str(plugin / "toy_plugin/configs/toy/tiny/70b.yaml"),
        "about": "The large toy",
        "package": "toy-plugin 1.2",
    }
    assert {entry["package"] for entry in entries[:-3]} <= {f"torchtune-recipes {__version__}"}


def test_help_names_our_commands_and_a_plug_ins(tune, plugin):
    shown = tune("--help", path=plugin)
    assert shown.returncode == 0
    assert "  cp           Copy a recipe or a config" in shown.stdout
    assert "  greet        from toy-plugin" in shown.stdout
    assert "  toy          Play with a model." in shown.stdout


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
            ["download", "me/model"],
            "error[E-NO-COMMAND]: `tune` has no command and no recipe 'download'\n"
            "  huggingface_hub has it: `hf download REPO --local-dir ./models/NAME`\n",
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


def test_a_command_whose_package_is_missing_says_what_brings_it(tune, plugin):
    (plugin / "toy_plugin/__init__.py").write_text("")
    (plugin / "toy_plugin/needy.py").write_text("import no_such_package\n")
    done = tune("needy", path=plugin)
    assert done.returncode == 3
    assert done.stderr == (
        "error[E-COMMAND-PACKAGE]: `tune needy` needs the package 'no_such_package', "
        "which is not installed\n"
        "  pip install 'toy-plugin[extra]'\n"
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
