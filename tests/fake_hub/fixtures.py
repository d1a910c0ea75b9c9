"""The fixture `fake_hub`: a hub for one test, which every program and library in it speaks to."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub.server import FakeHub

__all__ = ["fake_hub"]


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A fake hub without models: `os.environ` and huggingface_hub point to it, none is logged in."""
    from huggingface_hub import constants, hf_api

    home = tmp_path / "hf_home"
    with FakeHub(tmp_path / "hub") as hub:
        for name, value in hub.environment(home).items():
            monkeypatch.setenv(name, value)
        # read when the library was imported, which may have been in another test
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
        files = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        yield hub
