"""`tune run` and its other spellings: what runs, with which arguments, and what is refused."""

import argparse
import json

import pytest

RECIPE = '''"""Say what was asked for."""
import json, sys
from dataclasses import asdict, dataclass
from torchtune.config import TuneArgumentParser
from torchtune.errors import TuneError, report_errors
{imports}

@dataclass
class EchoParams:
    batch_size: int = 8
    dtype: str = "fp32"
    checkpoint: str | None = None
    fail: bool = False

if __name__ == "__main__":
    with report_errors():
        params = TuneArgumentParser(EchoParams).parse_args()
        if params.fail:
            raise TuneError("E-ECHO", "failed as asked")
        print(json.dumps([asdict(params), sys.argv[1:], "torch" in sys.modules]))
'''


@pytest.fixture
def echo(tmp_path):
    """A recipe of the user's own that prints its params, its words and whether torch is loaded."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here/echo.py").write_text(RECIPE.format(imports=""))
    return "echo.py"


@pytest.mark.parametrize(
    "words",
    [
        ["run", "echo.py"],
        ["echo.py", "--nproc_per_node", "1"],
        ["--nnodes", "1", "--nproc_per_node=1", "echo.py"],
    ],
)
def test_one_process_runs_the_file_here(tune, echo, words):
    done = tune(*words, "--batch-size", "4", "dtype=bf16")
    params = {"batch_size": 4, "dtype": "bf16", "checkpoint": None, "fail": False}
    arguments = ["--batch-size", "4", "dtype=bf16"]
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)[:2] == [params, arguments]


def test_a_recipe_whose_params_need_more_than_the_standard_library_runs_too(tune, tmp_path, echo):
    imports = "from tqdm import tqdm"
    text = RECIPE.format(imports=imports).replace("bool = False", "bool = bool(tqdm is None)")
    (tmp_path / "here/echo.py").write_text(text)
    assert json.loads(tune("run", "echo.py").stdout)[0]["fail"] is False


def test_a_shipped_configs_name_becomes_its_path(tune, plugin):
    text = RECIPE.format(imports="")
    (plugin / "toy_plugin/recipes/toy.py").write_text(text)
    done = tune("run", "toy", "--config", "tiny/8b", path=plugin)
    params, words, _ = json.loads(done.stdout)
    assert params["batch_size"] == 2
    assert words == ["--config", str(plugin / "toy_plugin/configs/toy/tiny/8b.yaml")]


def test_help_lists_the_keys_of_the_recipe_without_running_it(tune, echo):
    shown = tune("run", "echo.py", "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "--batch-size VALUE" in shown.stdout


def test_the_recipes_own_error_is_passed_on_as_it_is(tune, echo):
    done = tune("run", "echo.py", "--fail")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error[E-ECHO]: failed as asked\n"


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["no.py"], 3, "error[E-NO-FILE]: the file no.py does not exist\n"),
        (
            ["no"],
            2,
            "error[E-NO-RECIPE]: no recipe is called 'no'\n  `tune ls` shows them all\n",
        ),
        (
            ["sft", "--config", "llama3_2/1b_lor"],
            2,
            "error[E-NO-CONFIG]: no config is called 'llama3_2/1b_lor'\n"
            "  did you mean 'llama3_2/1b_lora'?\n",
        ),
        (
            ["sft", "--config", "mine.yaml"],
            3,
            "error[E-NO-FILE]: the file mine.yaml does not exist\n",
        ),
        (
            ["--nproc", "2", "sft"],
            2,
            "error[E-USAGE]: tune run: unrecognized arguments: --nproc\n  see `tune run --help`\n",
        ),
        (
            ["echo.py", "--nproc-per-node"],
            2,
            "error[E-USAGE]: --nproc-per-node needs a number of processes\n  --nproc-per-node 2\n",
        ),
        (
            ["echo.py", "checkpoint=./none"],
            3,
            "error[E-FILE]: './none' is not on this machine\n  at checkpoint, command line\n",
        ),
    ],
)
def test_what_cannot_run_is_refused_in_a_line_or_two(tune, echo, words, code, error):
    done = tune("run", *words)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", error)


def test_all_faults_are_reported_before_torch_is_loaded(tune, tmp_path, echo):
    imports = "raise SystemExit('the file itself must not be run')"
    (tmp_path / "here/echo.py").write_text(RECIPE.format(imports=imports))
    done = tune("run", "--nproc_per_node", "2", "echo.py", "batch_size=x", "dtipe=bf16")
    assert done.returncode == 2
    assert done.stderr.count("error[") == 2
    assert "did you mean 'dtype'?" in done.stderr


VALUES = {
    "--max-restarts": "3",
    "--monitor-interval": "0.5",
    "--node-rank": "1",
    "--master-port": "29517",
    "--shutdown-timeout": "7",
    "--start-method": "fork",
    "--numa-binding": "node",
    "--duplicate-stdout-filters": "loss,step",
}


def ours(words):
    from torchtune_recipes.cli.run import add_arguments, torchrun_words

    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    given = parser.parse_args(words)
    return [*torchrun_words(given), given.recipe, *given.arguments]


def test_every_option_of_torchrun_in_every_spelling_reaches_its_parser():
    from torch.distributed.run import get_args_parser

    theirs = get_args_parser()
    spellings = [
        a for a in theirs._actions if a.option_strings and "--help" not in a.option_strings
    ]
    assert len(spellings) > 25
    for action in spellings:
        value = [] if action.nargs == 0 else [VALUES.get(long_name(action), "2")]
        for spelling in action.option_strings:
            words = [spelling, *value, "sft", "batch_size=2"]
            assert vars(theirs.parse_args(ours(words))) == vars(theirs.parse_args(words))


def long_name(action):
    return next(word for word in action.option_strings if word.startswith("--"))


def test_options_that_torchrun_alone_knows_start_it_for_one_process_too(tune, tmp_path, echo):
    logs = tmp_path / "logs"
    done = tune("run", "--log-dir", str(logs), "--tee", "1", "echo.py", "batch_size=4")
    assert done.returncode == 0, done.stderr
    (log,) = logs.rglob("stdout.log")
    assert json.loads(log.read_text())[0]["batch_size"] == 4


def test_a_module_runs_as_python_m_would(tune, tmp_path, echo):
    done = tune("run", "-m", "echo", "batch_size=4", path=tmp_path / "here")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["batch_size"] == 4
    done = tune("run", "-m", "nowhere", "batch_size=4")
    assert done.returncode == 2
    assert done.stderr.startswith("error[E-RECIPE-FILE]: there is no module 'nowhere'")


@pytest.mark.parametrize(
    ("launch", "processes"),
    [([], 1), (["--nproc_per_node", "4"], 4), (["--nnodes", "2", "--nproc-per-node=5"], 10)],
)
def test_another_product_of_parallel_is_refused_before_anything_starts(
    tune, tmp_path, echo, launch, processes
):
    section = "parallel: Parallel = field(default_factory=Parallel)"
    text = RECIPE.format(
        imports="from dataclasses import field\nfrom torchtune.config import Parallel"
    )
    (tmp_path / "here/echo.py").write_text(
        text.replace("fail: bool = False", f"{section}\n    fail: bool = False")
    )
    done = tune("run", *launch, "echo.py", "parallel.tensor=3")
    assert (done.returncode, done.stdout) == (2, "")
    first, where, do = done.stderr.splitlines()
    assert (
        first
        == f"error[E-PARALLEL]: tensor 3 needs a multiple of 3 processes; there are {processes}"
    )
    assert where == "  at parallel.tensor, command line" and "parallel.tensor=1" in do
