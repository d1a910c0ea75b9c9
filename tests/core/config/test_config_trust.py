"""A config is untrusted: what it may name, and what it may not whatever the disguise."""

import os
import sys

import pytest
import torch
import torchtune.config
from torchtune.config import build, trust
from torchtune.errors import ConfigError

DISGUISES = [
    "os.system",
    "builtins.eval",
    "builtins.exec",
    "subprocess.Popen",
    "posix.system",
    "importlib.import_module",
    "torch.load",
    "torch.hub.load",
    "torch.nn.modules.module.torch.hub.load",
    "torch.nn.modules.module.functools.partial",
    "torch.nn.functional.torch.load",
    "torch.nn.modules.module.OrderedDict",
    "torch.nn.init.warnings.warn",
    "torch.optim.optimizer.functools.partial",
    "torch.optim.optimizer.torch.load",
    "torch.nn.Module.__init__.__globals__",
    "torch.nn.Embedding.from_pretrained",
    "torch.nn.modules",
    "torch.nn.functional.relu",
    "torchtune.errors.os.system",
    "torchtune.errors.sys.exit",
    "torchtune.errors.report_errors",
    "torchtune.config.reader.yaml.unsafe_load",
    "torchtune.config.registry.importlib.import_module",
    "torchtune.config.registry.trust",
    "torchtune.config.source_file.import_file",
    "torchtune..errors",
    "torchtune.config.registry._import",
    "__main__.__builtins__",
    "torch.optim; import os",
    "antigravity.x",
]


@pytest.mark.parametrize("name", DISGUISES)
def test_a_disguised_call_is_refused_and_never_made(faults, monkeypatch, name):
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("called"))
    for text in (f"optimizer: '{name}'\n", f"optimizer: {{_component_: '{name}', command: ls}}\n"):
        (fault,) = faults(text)
        assert fault.code in ("E-COMPONENT-REFUSED", "E-COMPONENT-NAME") and fault.exit_code == 2
        assert fault.where.startswith("optimizer, ") and fault.where.endswith("run.yaml:2")
    with pytest.raises(ConfigError):
        build("optimizer", {"_component_": name})
    assert "antigravity" not in sys.modules


def test_a_disguise_inside_an_argument_is_refused_too(faults):
    (fault,) = faults("loss: {_component_: torch.nn.Identity, x: {_component_: os.system}}\n")
    assert fault.code == "E-COMPONENT-REFUSED" and fault.where.startswith("loss.x, ")


def test_classes_and_registered_functions_may_be_named():
    assert build("loss", "torch.nn.modules.loss.L1Loss").reduction == "mean"
    made = build("optimizer", "torchtune.training.adamw", [torch.nn.Parameter(torch.ones(1))])
    assert type(made) is torch.optim.AdamW


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the user's own."""
    (tmp_path / "my_parts").mkdir()
    (tmp_path / "my_parts" / "__init__.py").write_text(
        "from os import system\nimport os\n"
        "class Doubler:\n    def __init__(self, factor: int = 2): self.factor = factor\n"
        "def messages(row): return [row]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torchtune.config.registry, "_trusted", set())
    yield "my_parts"
    sys.modules.pop("my_parts", None)


def test_a_package_is_reached_only_once_it_is_trusted(parse, faults, package):
    text = "loss: {_component_: my_parts.Doubler, factor: 3}\n"
    (fault,) = faults(text)
    assert "--trust my_parts" in fault.do and package not in sys.modules
    params = parse(text, "--trust", package)
    assert build("loss", params.loss).factor == 3
    assert build("row", "my_parts.messages", 1) == [1]


@pytest.mark.parametrize("name", ["my_parts.system", "my_parts.os.system", "my_parts.Doubler.x"])
def test_trust_does_not_reach_beyond_the_package(package, name):
    trust(package)
    with pytest.raises(ConfigError, match="REFUSED"):
        build("loss", name)


def test_python_itself_cannot_be_trusted(faults):
    (fault,) = faults("", "--trust", "os")
    assert fault.code == "E-TRUST"


def test_a_function_given_as_an_argument_follows_the_same_rules(parse, faults, package):
    text = "dataset_val: {_component_: rows, source: x.jsonl, transform: NAME}\n"
    (fault,) = faults(text.replace("NAME", "os.system"))
    assert fault.code == "E-COMPONENT-REFUSED" and fault.where.startswith("dataset_val.transform")
    parse(text.replace("NAME", "my_parts.messages"), "--trust", package)


def test_the_recipe_file_itself_may_be_named_by_its_config(tmp_path):
    import subprocess

    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from torchtune.config import Component, TuneArgumentParser, build\n"
        "class Loss:\n    name = 'mine'\n"
        "@dataclass\nclass Params:\n    loss: Component = 'x'\n"
        "if __name__ == '__main__':\n"
        "    print(build('loss', TuneArgumentParser(Params).parse_args().loss).name)\n"
    )
    command = [sys.executable, str(tmp_path / "mine.py"), "loss=__main__.Loss"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "mine\n", done.stderr
