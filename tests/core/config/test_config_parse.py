"""Params, YAML and command line: which value wins, and what a wrong one is told."""

from typing import Any

import pytest
import torch
from torchtune.config import TuneArgumentParser, build
from torchtune.errors import ConfigError, MissingError

DATA = {"_component_": "torch.nn.Linear", "in_features": 1, "out_features": 1}


def test_command_line_goes_before_yaml_and_yaml_before_the_default(parse):
    params = parse("batch_size: 4\nnoise: 2\n", "batch_size=2")
    assert (params.batch_size, params.noise, params.dtype) == (2, 2.0, "bf16")
    assert params.dataset == DATA and params.model == {"_component_": "torch.nn.Identity"}


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--batch-size", "4"], "batch_size", 4),
        (["--batch_size=4"], "batch_size", 4),
        (["--output-dir", "a=b"], "output_dir", "a=b"),
        (["output_dir=x=y=z"], "output_dir", "x=y=z"),
        (["output_dir=Hello: you"], "output_dir", "Hello: you"),
        (["output_dir=007"], "output_dir", "007"),
        (["output_dir=a #1"], "output_dir", "a #1"),
        (["--override", "batch_size=3", "noise=1e-5"], "noise", 1e-5),
        (["--noise", "-1"], "noise", -1.0),
        (["--packed"], "packed", True),
        (["--packed", "false"], "packed", False),
        (["--packed", "--no-packed"], "packed", False),
        (["max_steps=3", "max_steps=None"], "max_steps", None),
        (["max_steps=3", "~max_steps"], "max_steps", None),
        (["batch_size=3", "~batch_size"], "batch_size", 8),
        (["targets=[q_proj, v_proj]"], "targets", ["q_proj", "v_proj"]),
        (["--max-steps", "1e3"], "max_steps", 1000),
    ],
)
def test_a_word_of_the_command_line_sets_its_key(parse, words, key, value):
    found = getattr(parse("", *words), key)
    assert found == value and type(found) is type(value)


def test_a_second_config_is_not_taken_silently(faults, tmp_path):
    (tmp_path / "b.yaml").write_text("dataset: torch.nn.Identity\n")
    (fault,) = faults("", "--config", str(tmp_path / "b.yaml"))
    assert fault.code == "E-ARGUMENT"
    assert fault.what.startswith("a second config: ")


def test_an_unset_variable_is_named_and_nothing_of_omegaconf(faults, monkeypatch):
    monkeypatch.delenv("DATA_DIR", raising=False)
    (fault, other) = faults("output_dir: ${oc.env:DATA_DIR}/x\nloss: ${oc.env:DATA_DIR}\n")
    assert fault.what == other.what == "Environment variable 'DATA_DIR' not found"
    assert fault.where.startswith("output_dir, ") and other.where.startswith("loss, ")


def test_naming_another_component_drops_the_arguments_of_the_old_one(parse):
    yaml = "optimizer: {_component_: torch.optim.Adagrad, lr_decay: 0.1}\n"
    params = parse(yaml, "optimizer=sgd", "optimizer.lr=1e-4")
    assert params.optimizer == {"_component_": "sgd", "lr": 1e-4}


def test_arguments_alone_change_the_default_component(parse):
    params = parse("optimizer: {momentum: 1}\n", "--optimizer.nesterov", "true")
    wanted = {"_component_": "sgd", "lr": 0.5, "momentum": 1.0, "nesterov": True}
    assert params.optimizer == wanted


def test_a_deleted_argument_goes_back_to_the_signature(parse):
    params = parse("optimizer: {momentum: 1}\n", "~optimizer.momentum")
    assert params.optimizer == {"_component_": "sgd", "lr": 0.5}


def test_all_faults_come_at_once_with_file_and_line(faults):
    found = faults(
        "batch_sze: 3\n"
        "batch_size: four\n"
        "noise: 1\n"
        "noise: 2\n"
        "dtype: bf61\n"
        "optimizer: {momentm: 1}\n"
        "lr_scheduler: torch.optim.lr_scheduler.StepLR\n"
        "max_steps: !!python/name:os.system\n",
        "--pcked",
        "packed=maybe",
    )
    text = "\n".join(map(str, found))
    for line, words in {
        2: ["no key 'batch_sze'", "did you mean 'batch_size'?"],
        3: ["'batch_size' must be an integer, found 'four'"],
        5: ["the key 'noise' stands twice"],
        6: ["'dtype' must be fp32 or bf16, found 'bf61'", "did you mean 'bf16'?"],
        7: ["no argument 'momentm'", "did you mean 'momentum'?"],
        8: ["StepLR needs the argument 'step_size'"],
        9: ["python/name:os.system' is not allowed"],
    }.items():
        assert f"run.yaml:{line}\n" in text + "\n"
        assert all(word in text for word in words), words
    assert "'--pcked' is not understood" in text and "'packed' must be true or false" in text
    assert len(found) == 9 and all(len(str(fault).splitlines()) <= 3 for fault in found)
    assert {fault.exit_code for fault in found} == {2}


def test_checks_of_values_name_the_line_of_their_key(faults):
    found = faults("packed: true\nmax_steps: 7\nbatch_size: 0\nnose: 1\n")
    assert [fault.code[-5:] for fault in found] == ["VALUE", "VALUE", "G-KEY"]
    assert found[0].where.endswith("run.yaml:2") and found[1].where.endswith("run.yaml:4")


def test_values_are_checked_although_a_component_is_wrong(faults):
    found = faults("model: os.system\nbatch_size: 0\n")
    assert [fault.code for fault in found] == ["E-COMPONENT-REFUSED", "E-CONFIG-VALUE"]


def test_a_required_key_is_asked_for(params_class):
    with pytest.raises(ConfigError, match="'dataset' must be given"):
        TuneArgumentParser(params_class).parse_args([])


def test_arguments_without_a_component_are_refused(faults):
    (fault,) = faults("", "lr_scheduler.step_size=1")
    assert "lr_scheduler=NAME" in fault.do


def test_a_missing_config_file_exits_3(params_class):
    with pytest.raises(MissingError) as caught:
        TuneArgumentParser(params_class).parse_args(["--config", "nowhere.yaml"])
    assert caught.value.exit_code == 3


def test_help_lists_keys_with_docs_sections_and_defaults(capsys, params_class):
    with pytest.raises(SystemExit) as caught:
        TuneArgumentParser(params_class).parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    assert "--batch-size VALUE rows of one micro-batch [an integer; default 8]" in text
    assert "--output-dir VALUE Where the results go. [text; default ./out]" in text
    assert "optimizer: --optimizer VALUE" in text and "must be given" in text
    assert "A small training run." in text


def test_build_gives_what_torch_would_make():
    layer = torch.nn.Linear(2, 2)
    made = build("optimizer", {"_component_": "sgd", "lr": 1}, layer.parameters(), momentum=0.5)
    wanted = torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.5)
    assert type(made) is torch.optim.SGD and made.defaults == wanted.defaults


def test_build_prefers_the_config_and_refuses_what_does_not_fit():
    params = [torch.nn.Parameter(torch.ones(1))]
    config: dict[str, Any] = {"_component_": "sgd", "lr": 0.1, "momentum": 0.2}
    assert build("optimizer", config, params, momentum=0.9).defaults["momentum"] == 0.2
    with pytest.raises(ConfigError, match=r"optimizer\.lr"):
        build("optimizer", {"_component_": "sgd", "lr": "fast"}, params)
    with pytest.raises(ConfigError, match="Invalid learning rate"):
        build("optimizer", {"_component_": "sgd", "lr": -1.0}, params)
