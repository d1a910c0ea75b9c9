"""Completion in the shells themselves: what is offered where, and what the line becomes."""

import os
import shutil
import subprocess
import sys

import pytest
from torchtune_recipes.completion import complete

BASH = """
source <(tune completion bash)
COMP_LINE="tune $1" COMP_POINT=$((5 + ${#1}))
_tune
printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """
compdef() { : }
compset() { : }
_files() { print A-FILE }
compadd() { print -l -- "${(@)@[$@[(i)--]+1,-1]}" }
source <(tune completion zsh)
words=(tune "${(@s: :)1}") CURRENT=${#words} PREFIX=${words[-1]}
_tune
"""
FISH = """
source (tune completion fish | psub)
complete -C "tune $argv[1]"
"""
SHELLS = {
    "bash": ["bash", "-c", BASH, "-"],
    "zsh": ["zsh", "-fc", ZSH, "-"],
    "fish": ["fish", "-c", FISH],
}


@pytest.fixture(params=SHELLS)
def offered(request, tmp_path, plugin):
    """Return what a shell offers for a line that begins with `tune`."""
    if shutil.which(request.param) is None:
        pytest.skip(f"needs {request.param}")
    program = tmp_path / "tune"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m torchtune_recipes.cli.main "$@"\n')
    program.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    there = {"PATH": path, "PYTHONPATH": str(plugin), "HOME": str(tmp_path)}

    def ask(line):
        done = subprocess.run(
            [*SHELLS[request.param], line],
            env={**os.environ, **there},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.stderr == ""
        return [word.partition("\t")[0] for word in done.stdout.splitlines() if word]

    return ask


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("vali", ["validate"]),
        ("data ", ["check"]),
        ("cp --", ["--help", "--force", "--no-clobber", "--make-parents"]),
        ("cp --force tinyllama/", ["tinyllama/1_1b_full", "tinyllama/1_1b_lora"]),
        ("ls --family llama3_", ["llama3_1", "llama3_2", "llama3_3"]),
        ("completion ", ["bash", "zsh", "fish"]),
        ("data check x --train-on ", ["all", "last"]),
        ("run --nproc-per-node 2 sf", ["sft"]),
        ("run --nproc-per-node=2 sf", ["sft"]),
        ("run --nnodes ", []),
        ("run --rdzv-end", ["--rdzv-endpoint"]),
        ("--rdzv-end", ["--rdzv-endpoint"]),
        ("run sft --config=llama3_2/1", [f"--config=llama3_2/1b_{n}" for n in ("full", "lora")]),
        ("run generate --config ", []),
        ("sft --grad", ["--gradient-accumulation-steps"]),
        ("run sft --dtype b", ["bf16"]),
        ("run sft packed=", ["packed=true", "packed=false"]),
        ("run sft lr_scheduler=c", ["lr_scheduler=constant", "lr_scheduler=cosine"]),
        ("run sft ~lr", ["~lr_scheduler"]),
        ("run sft optimizer.wei", ["optimizer.weight_decay="]),
        ("run sft optimizer=sgd optimizer.nest", ["optimizer.nesterov="]),
        ("run sft optimizer=sgd optimizer.nesterov=f", ["optimizer.nesterov=false"]),
        ("validate generate llama2/", []),
        ("validate sft llama3_2/1", ["llama3_2/1b_full", "llama3_2/1b_lora"]),
        ("validate llama2/7b_full --h", ["--here"]),
        ("validate llama2/7b_full max_steps_", ["max_steps_per_epoch="]),
        ("run nosuch ", []),
        ("nosuch ", []),
    ],
)
def test_what_can_stand_there_is_offered(line, words):
    assert complete(line.split(" ")) == words


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("gre", ["greet"]),  # a plug-in's command
        ("cat tiny/", ["tiny/8b", "tiny/70b"]),
        ("run sft --config llama3_2/1", ["llama3_2/1b_full", "llama3_2/1b_lora"]),
        ("run sft grad", ["gradient_accumulation_steps="]),
    ],
)
def test_each_shell_offers_it(offered, line, words):
    assert sorted(offered(line)) == sorted(words)


def test_values_of_a_key_are_offered_after_its_sign(offered):
    found = {word.removeprefix("dtype=") for word in offered("run sft dtype=")}
    assert found == {"bf16", "fp16", "fp32"}


def test_a_file_is_offered_where_no_word_is_known(offered, tmp_path):
    (tmp_path / "my_sft.py").write_text("")
    found = offered("diff ")  # readline adds the files itself where nothing is offered
    assert found in ([], ["A-FILE"]) or "my_sft.py" in found


def test_keys_of_a_recipe_of_ones_own_are_offered(offered, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nimport no_such_package\n"
        "@dataclass\nclass MyParams:\n    speed: int = 1\n"
    )
    assert offered("run ./mine.py sp") == ["speed="]


def test_a_line_that_is_wrong_offers_nothing(tune):
    done = tune("_complete", "run", "nosuch", "")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_unknown_shell_is_refused(tune):
    done = tune("completion", "tcsh")
    assert (done.returncode, done.stdout) == (2, "")
    assert "choose from" in done.stderr
