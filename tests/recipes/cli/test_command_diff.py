"""`tune diff`: my changes and a newer version's, each by itself, offline."""

import subprocess

import pytest

ORIGINAL = '"""Play with a model."""\nrows = 1\nsteps = 2\n'
NEWER = '"""Play with a model."""\nrows = 1\nsteps = 3\nseed = 0\n'
CONFIG = "# yaml-language-server: $schema=../../../schemas/toy.json\n# The toy\nrows: 1\n"


@pytest.fixture
def here(tune, plugin, tmp_path):
    """A folder with copies of version 1.2 of a recipe and of a config."""
    (plugin / "toy_plugin/recipes/toy.py").write_text(ORIGINAL)
    (plugin / "toy_plugin/configs/toy/tiny/8b.yaml").write_text(CONFIG)
    assert tune("cp", "toy", "my.py", path=plugin).returncode == 0
    assert tune("cp", "tiny/8b", "my.yaml", path=plugin).returncode == 0
    return tmp_path / "here"


def change(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def upgrade(plugin):
    (plugin / "toy_plugin-1.2.dist-info").rename(plugin / "toy_plugin-2.0.dist-info")
    (plugin / "toy_plugin/recipes/toy.py").write_text(NEWER)


@pytest.mark.parametrize("name", ["my.py", "my.yaml"])
def test_a_copy_as_it_was_made_does_not_differ(tune, plugin, here, name):
    done = tune("diff", name, path=plugin)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == (
        "you: no change since toy-plugin 1.2\ntoy-plugin 1.2: no change since then\n"
    )


def test_my_changes_are_a_diff_that_patch_takes(tune, plugin, here):
    changed = (here / "my.py").read_text().replace("rows = 1", "rows = 8")
    (here / "my.py").write_text(changed)
    done = tune("diff", "my.py", path=plugin)
    assert done.returncode == 1
    assert done.stdout == (
        "--- toy-plugin 1.2: recipes/toy.py\n+++ my.py\n@@ -1,4 +1,4 @@\n"
        + "".join(f" {line}\n" for line in changed.splitlines()[:2])
        + "-rows = 1\n+rows = 8\n steps = 2\n"
    )
    tune("cp", "toy", "again.py", path=plugin)
    subprocess.run(["patch", "again.py"], cwd=here, input=done.stdout, text=True, check=True)
    assert (here / "again.py").read_text() == changed


def test_after_an_upgrade_mine_and_theirs_are_told_apart(tune, plugin, here):
    change(here / "my.py", "rows = 1", "rows = 8")
    upgrade(plugin)
    done = tune("diff", "my.py", path=plugin)
    assert done.returncode == 1
    mine, theirs = done.stdout.split("--- toy-plugin 1.2: recipes/toy.py\n")[1:]
    assert mine.startswith("+++ my.py\n")
    assert "+rows = 8" in mine and "seed" not in mine
    assert theirs.startswith("+++ toy-plugin 2.0: recipes/toy.py\n")
    assert "-steps = 2\n+steps = 3\n+seed = 0\n" in theirs and "rows = 8" not in theirs
    assert done.stderr == (
        "you: +1 -1 lines since toy-plugin 1.2\ntoy-plugin 2.0: +2 -1 lines since then\n"
        "next: tune cp toy NEW gives you today's to change\n"
    )


def test_only_their_changes_are_a_difference_too(tune, plugin, here):
    upgrade(plugin)
    assert tune("diff", "my.py", path=plugin).returncode == 1


def test_without_the_original_todays_is_compared_and_the_way_out_named(tune, plugin, here):
    change(here / "my.py", "rows = 1", "rows = 8")
    upgrade(plugin)
    elsewhere = {"XDG_CACHE_HOME": str(here / "empty")}
    done = tune("diff", "my.py", path=plugin, **elsewhere)
    assert done.returncode == 1
    assert done.stdout.startswith("--- toy-plugin 2.0: recipes/toy.py\n+++ my.py\n")
    assert "with toy-plugin 1.2, `tune cat toy` prints it for --original" in done.stderr
    (here / "original.py").write_text(ORIGINAL)
    given = tune("diff", "my.py", "--original", "original.py", path=plugin, **elsewhere)
    assert given.stdout == tune("diff", "my.py", path=plugin).stdout


def test_a_file_that_is_shipped_no_longer_is_compared_with_what_it_was(tune, here):
    change(here / "my.py", "rows = 1", "rows = 8")
    done = tune("diff", "my.py")  # the plug-in is not installed
    assert (done.returncode, "+rows = 8" in done.stdout) == (1, True)
    assert done.stderr.endswith("toy-plugin ships no recipes/toy.py today\n")


def test_a_last_line_without_a_break_does_not_run_into_the_next(tune, plugin, here):
    (here / "my.py").write_text((here / "my.py").read_text().rstrip("\n"))
    done = tune("diff", "my.py", path=plugin)
    assert done.stdout.endswith("-steps = 2\n+steps = 2\n\\ No newline at end of file\n")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["none.py"], 3, "error[E-NO-FILE]: none.py cannot be read"),
        (["bytes.py"], 3, "error[E-NO-FILE]: bytes.py cannot be read: it is not text"),
        (["own.py"], 2, "error[E-NO-COPY]: own.py does not say what it is a copy of"),
        (["my.py", "--original", "own.py"], 2, "error[E-NO-ORIGINAL]: own.py is not the text"),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_line(tune, plugin, here, words, code, said):
    (here / "own.py").write_text("print()\n")
    (here / "bytes.py").write_bytes(b"\xff\xfe")
    done = tune("diff", *words, path=plugin)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(said)


def test_with_neither_original_nor_todays_nothing_can_be_said(tune, here):
    done = tune("diff", "my.py", XDG_CACHE_HOME=str(here / "empty"))
    assert done.returncode == 3
    assert done.stderr.startswith("error[E-NO-ORIGINAL]: neither the original nor a later version")


def test_a_changed_kept_text_is_not_believed(tune, plugin, here, tmp_path):
    upgrade(plugin)
    for file in (tmp_path / "cache/torchtune/originals").iterdir():
        file.write_text("something else")
    assert "is not on this machine" in tune("diff", "my.py", path=plugin).stderr
