"""torchao comes without a word, or with the command that installs it."""

import importlib.util
import logging
import subprocess
import sys
from importlib import metadata

import pytest
from torchtune.errors import MissingError
from torchtune.training.torchao_import import import_torchao

TALKS = """
import logging, warnings
logging.getLogger(__name__).warning("Failed to load a kernel")
warnings.warn("deprecated")
"""
LOAD = """
import logging
from torchtune.training.torchao_import import import_torchao
print(import_torchao("torchao.float8", what="fp8", where="fp8").__name__)
logging.getLogger("torchao").warning("speaks again")
"""


def test_a_talking_module_is_loaded_without_a_word(tmp_path, monkeypatch, caplog, recwarn):
    (tmp_path / "talks_while_loaded.py").write_text(TALKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(metadata, "version", lambda _: "0.18.1+cpu")
    assert import_torchao("talks_while_loaded", what="fp8", where="fp8").logging is logging
    assert (caplog.messages, list(recwarn)) == ([], [])
    logging.warning("speaks again")
    assert caplog.messages == ["speaks again"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
def test_an_import_says_nothing_and_leaves_logging_as_it_was():
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("torchao.float8\n", "speaks again\n")


def test_without_torchao_the_error_names_the_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(MissingError, match="training in fp8 needs torchao") as caught:
        import_torchao("torchao.float8", what="training in fp8", where="fp8")
    assert (caught.value.code, caught.value.where) == ("E-TORCHAO", "fp8")
    assert caught.value.do == 'pip install "torchao>=0.18"'
    assert logging.root.manager.disable == logging.NOTSET


@pytest.mark.parametrize("version", ["0.17.0", "0.9.0.dev20250101+cu128"])
def test_an_older_torchao_is_refused_with_the_one_that_is_needed(version, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda _: version)
    with pytest.raises(MissingError, match="fp8 needs a newer torchao than 0") as caught:
        import_torchao("json", what="fp8", where="fp8")
    assert caught.value.do == 'pip install "torchao>=0.18"'
