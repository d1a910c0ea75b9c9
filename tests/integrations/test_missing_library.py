"""A logger whose library is missing says which command brings it."""

import sys

import pytest
from torchtune.config import build
from torchtune.errors import MissingError


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_library_is_named_with_its_extra(name, monkeypatch, tmp_path):
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingError, match=rf"torchtune-integrations\[{name}\]") as caught:
        build("metric_logger", name, output_dir=str(tmp_path))
    assert caught.value.exit_code == 3
