"""`tune estimate`: what it counts of the real recipe, its exit codes, and words to paste that help."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from torchtune.checkpoint import describe
from torchtune.testing import tiny_checkpoint, tiny_rows
from torchtune_recipes import catalog
from torchtune_recipes.cli.main import main


@pytest.fixture
def tune(capsys):
    """Run ``tune WORDS`` in this process: loading torch again takes seconds."""

    def call(*words):
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    return call


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimate")
    model, rows = tiny_checkpoint(folder / "model"), tiny_rows(folder, 4)
    return ["estimate", "sft", f"checkpoint={model}", f"dataset={rows}", "dtype=fp32"]


def test_bytes_by_part_are_those_of_the_checkpoint_and_rows_those_of_the_data(tune, words):
    model = words[2].partition("=")[2]
    done = tune(*words, "--json", "--gpu-memory", "1GB")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["fits"]
    assert found["most"]["weights"] == 4 * describe(model)["weights"]["parameters"]
    assert found["peak_bytes"] == sum(found["parts"].values())
    assert "reading" in done.stderr and 20 < found["row_tokens"] < 200
    assert "next: tune run sft checkpoint=" in done.stderr


def test_a_copy_is_counted_as_it_was_changed(tune, words, tmp_path):
    text = catalog.find("sft").path.read_text()
    frozen = text.replace("        model = model.to(self.dtype)\n", FREEZE, 1)
    assert frozen != text
    (tmp_path / "mine.py").write_text(frozen)
    found = tune("estimate", str(tmp_path / "mine.py"), *words[2:], "--row-tokens", "16", "--json")
    most = json.loads(found.stdout)["most"]
    assert 0 < most["gradients"] < most["weights"] / 20


FREEZE = """\
        model = model.to(self.dtype)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = "norm" in name
"""


def test_the_loss_that_the_page_on_recipes_shows_is_counted_with_its_whole_logits(
    tune, words, tmp_path
):
    page = Path(__file__).parents[3] / "docs/recipes.md"
    code = (
        page.read_text().partition("<!-- file: my_loss.py -->\n```python\n")[2].partition("```")[0]
    )
    recipe = (
        catalog.find("sft").path.read_text().replace("@dataclass\n", f"{code}\n\n@dataclass\n", 1)
    )
    (tmp_path / "mine.py").write_text(recipe)
    shape = ["--row-tokens", "256", "batch_size=8", "--json"]
    found = tune(
        "estimate", str(tmp_path / "mine.py"), *words[2:], *shape, "loss=__main__.WithPenalty"
    )
    logits = 4 * 8 * 256 * 260
    assert json.loads(found.stdout)["most"]["loss"] > 2 * logits  # and their softmax


@pytest.mark.slow
def test_what_does_not_fit_exits_1_and_the_words_that_it_names_make_it_fit(tune, words):
    few = ["--row-tokens", "128", "--gpu-memory", "6MiB", "--json"]
    done = tune(*words, "batch_size=8", *few)
    best = json.loads(done.stdout)["changes"][0]
    assert done.returncode == 1 and best["fits"]
    again = tune(*words, "batch_size=8", *best["words"].split(), *few)
    assert again.returncode == 0
    assert json.loads(again.stdout)["peak_bytes"] == pytest.approx(best["peak_bytes"], rel=1e-3)


@pytest.mark.slow
def test_a_known_model_needs_no_download(tune):
    done = tune("estimate", "sft", "--config", "smollm2/135m_lora", "--json", "--gpu-memory", "80")
    assert "next: tune run sft --config smollm2/135m_lora\n" in done.stderr
    assert json.loads(done.stdout)["most"]["weights"] == pytest.approx(2 * 135e6, rel=0.1)
    assert "is taken to be smollm2_135m" in done.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--gpu-memory", "much"], "'much' is no size of a memory"),
        (["--gpus", "0"], "--gpus: is 0; it must be a whole number of at least 1"),
        (["--row-tokens", "-2"], "--row-tokens: is -2; it must be"),
        (["dataset=org/name"], "--row-tokens 2048"),
        (["learning_rate=1"], "there is no key 'learning_rate'"),
    ],
)
def test_bad_words_exit_2_and_say_what_would_be_good(tune, words, more, message):
    done = tune(*words, *more)
    assert done.returncode == 2 and message in done.stderr
