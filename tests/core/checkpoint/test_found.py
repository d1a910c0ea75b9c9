"""What a user may call a checkpoint, and what is nobody's name for it."""

import json

import pytest
from torchtune.checkpoint import find_checkpoint
from torchtune.distributed import join_world
from torchtune.errors import MissingError
from torchtune.testing import run_distributed, tiny_checkpoint


@pytest.fixture
def downloaded(tmp_path, monkeypatch):
    """A model in ./models, as `tune download acme/llama` leaves it."""
    monkeypatch.chdir(tmp_path)
    folder = tiny_checkpoint(tmp_path / "models" / "llama")
    source = {"repo": "acme/llama", "revision": "0" * 40}
    (folder / "hub_source.json").write_text(json.dumps(source))
    return folder


@pytest.mark.parametrize("name", ["llama", "acme/llama", "models/llama"])
def test_a_download_is_found_by_its_name(name, downloaded):
    assert find_checkpoint(name).folder.resolve() == downloaded


@pytest.mark.parametrize("path", ["output/llama", "other/llama", "/output/llama", "llama/step_1"])
def test_a_wrong_path_is_not_a_download_of_that_name(path, downloaded):
    with pytest.raises(MissingError, match="E-CHECKPOINT-MISSING"):
        find_checkpoint(path)


@pytest.mark.parametrize(("base", "found"), [("acme/llama", True), ("someone/llama", False)])
def test_an_adapters_base_is_a_download_of_that_very_model(base, found, downloaded, tmp_path):
    (tmp_path / "adapter").mkdir()
    config = {"base_model_name_or_path": base}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    if found:
        assert find_checkpoint("adapter").base.resolve() == downloaded
        return
    with pytest.raises(MissingError, match=f"tune download {base}"):
        find_checkpoint("adapter")


def find_one(folders):
    world = join_world("cpu")
    return find_checkpoint(folders[world.rank], world=world).folder


def test_the_main_process_decides_which_step_is_the_latest(tmp_path):
    folders = [tiny_checkpoint(tmp_path / name) for name in ("latest then", "latest now")]
    assert run_distributed(find_one, 2, folders) == [folders[0], folders[0]]
