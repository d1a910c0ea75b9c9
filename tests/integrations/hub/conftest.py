"""Two small runs, an adapter's and one of all weights, with a base that came from the hub."""

import importlib.util
import json
import os
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
from fake_hub.server import TOKEN, FakeHub
from torchtune.testing import tiny_checkpoint, tiny_rows
from torchtune_recipes import catalog

BASE, REVISION = "acme/llama-tiny", "0123456789abcdef0123456789abcdef01234567"


class Runs(NamedTuple):
    """Folders: what was downloaded, and the output folders of the runs that started from it."""

    base: Path
    rows: Path
    lora: Path
    full: Path


def train(*words: str) -> None:
    with mock.patch.object(sys, "argv", ["sft", "dtype=fp32", *words]):
        runpy.run_path(str(catalog.find("sft").path), run_name="__main__")


def downloaded(folder: Path, licence: str = "license: apache-2.0") -> Path:
    """Write a base as a download leaves it: model, card, licence text and where it came from."""
    tiny_checkpoint(folder)
    (folder / "README.md").write_text(f"---\n{licence}\n---\n# Tiny\n")
    (folder / "LICENSE").write_text("the text of the licence")
    (folder / "hub_source.json").write_text(json.dumps({"repo": BASE, "revision": REVISION}))
    return folder


@pytest.fixture(scope="session")
def runs_once(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("home_of_alice")
    base, rows = downloaded(folder / "models" / "llama-tiny"), tiny_rows(folder, 24)
    words = [f"checkpoint={base}", f"dataset={rows}", "max_steps=4", "optimizer.lr=0.01"]
    adapted = ["peft=lora", "peft.rank=4", "validation_split=0.2", "save_every_n_steps=2"]
    train(*words, *adapted, f"output_dir={folder / 'lora'}")
    train(*words, f"output_dir={folder / 'full'}")
    return Runs(base, rows, folder / "lora", folder / "full")


@pytest.fixture
def runs(runs_once: Runs) -> Runs:
    """The same, to be read only."""
    return runs_once


@pytest.fixture
def own_copy(tmp_path: Path) -> Callable[[Path], Path]:
    """Copy a folder, to be spoilt."""

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / "copy" / folder.name, symlinks=True))

    return copy


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reach no hub but the fake one of a test that asks for it."""
    from huggingface_hub import constants

    if not os.environ.get("HF_ENDPOINT", "").startswith("http://127.0.0.1"):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def hub(fake_hub: FakeHub, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A hub that has the base, where `tester` is logged in, and nobody waits to try again."""
    fake_hub.add("acme/llama-tiny", runs.base)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    if importlib.util.find_spec("transformers"):  # it remembers the hub of a test before
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
    return fake_hub
