"""Where a run goes on from that its own launcher has started again."""

import json

import pytest
from torchtune.checkpoint import RunFolder
from torchtune.distributed import World
from torchtune.errors import ConfigError


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Open the folder as a process of the launcher `name`, save the `steps`, and close it."""

    def open_as(name, *steps, resume=None):
        if name is None:
            monkeypatch.delenv("TUNE_LAUNCHED", raising=False)
        else:
            monkeypatch.setenv("TUNE_LAUNCHED", name)
        run = RunFolder(tmp_path / "run", World(), resume=resume)
        for step in steps:
            with run.writing(step) as folder:
                (folder / "file").write_text(f"{name}, step {step}")
        run.close()
        return run.resume_from and run.resume_from.name

    return open_as


def test_a_later_attempt_goes_on_from_what_its_launch_has_saved(opened, tmp_path):
    assert opened("first", 1, 2) is None
    assert opened("first", 3) == "step_000002"
    assert opened("first") == "step_000003"
    fields = json.loads((tmp_path / "run/step_000003/manifest.json").read_text())
    assert fields["launchers"] == ["first"]


@pytest.mark.parametrize("name", ["second", None])
def test_another_launch_is_refused(opened, name):
    opened("first", 1)
    with pytest.raises(ConfigError, match="E-FOLDER-HAS-RUN"):
        opened(name)
    assert opened(name, resume="auto") == "step_000001"


def test_without_a_launcher_nothing_is_gone_on_with(opened):
    opened(None, 1)
    with pytest.raises(ConfigError, match="E-FOLDER-HAS-RUN"):
        opened(None)


def test_a_run_that_went_back_does_not_go_back_again(opened, tmp_path):
    opened("first", 10, 20, 30)
    back = tmp_path / "run/step_000010"
    assert opened("second", resume=back) == "step_000010"  # and dies before it saves
    assert opened("second", 15, resume=back) == "step_000010"
    assert opened("second", resume=back) == "step_000015"
