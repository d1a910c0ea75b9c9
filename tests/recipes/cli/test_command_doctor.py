"""`tune doctor`: what it says of this machine, of what is missing, and of nobody."""

import importlib.metadata
import json
import platform

import torch


def test_the_report_names_versions_and_passes_its_own_test(tune):
    done = tune("doctor", "--json", HF_TOKEN="hf_secret")
    report = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert report["versions"]["python"] == platform.python_version()
    assert report["versions"]["safetensors"] == importlib.metadata.version("safetensors")
    assert torch.__version__ in report["devices"]["torch build"]
    assert report["self-test"]["result"].startswith("passed in")
    assert report["system"]["hub login"] == "yes"
    assert "hf_secret" not in done.stdout + done.stderr


def test_neither_home_nor_user_is_in_the_report(tune, tmp_path):
    home = tmp_path / "home" / "jane.doe"
    home.mkdir(parents=True)
    done = tune("doctor", HOME=str(home), TMPDIR="/nowhere/jane.doe", CXX=str(home / "g++"))
    assert done.returncode == 0
    assert "jane.doe" not in done.stdout
    assert done.stdout.splitlines()[-1] == "verdict: all that is needed is there, and works"
    assert done.stderr == "next: tune ls shows what can be run\n"


def test_the_older_package_is_told_of_and_nothing_of_it_is_imported(tune, tmp_path):
    (tmp_path / "torchtune-0.6.1.dist-info").mkdir()
    (tmp_path / "torchtune").mkdir()
    (tmp_path / "torchtune" / "__init__.py").write_text("raise RuntimeError('the older one')")
    done = tune("doctor", path=tmp_path)
    assert done.returncode == 3
    assert "the older package torchtune 0.6.1 has the same import name" in done.stdout
    assert "not tried" in done.stdout and done.stderr == ""


def test_a_failing_self_test_is_exit_code_1_and_says_what(tune, tmp_path):
    (tmp_path / "tokenizers").mkdir()
    (tmp_path / "tokenizers" / "__init__.py").write_text("raise ImportError('broken wheel')")
    done = tune("doctor", path=tmp_path)
    assert done.returncode == 1
    assert done.stdout.endswith("verdict: the self-test fails\n  ImportError: broken wheel\n")
