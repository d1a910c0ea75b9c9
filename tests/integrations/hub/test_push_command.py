"""`tune push_to_hub`: shown before it goes, asked for, and never without a way on."""

import io
import subprocess
import sys

import pytest
import yaml
from fake_hub.server import TOKEN
from torchtune_recipes.cli.main import main


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def tune(tmp_path, monkeypatch):
    """Run ``tune push_to_hub WORDS`` in an empty folder, answering what a user would type."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*words: object, typed: str | None = None) -> int:
        monkeypatch.setattr(sys, "stdin", io.StringIO() if typed is None else Terminal(typed))
        try:
            return main(["push_to_hub", *map(str, words)])
        except SystemExit as end:
            return int(end.code)

    return call


def test_a_dry_run_writes_the_card_and_says_how_to_go_on(tune, runs, tmp_path, capsys, fake_hub):
    assert tune("--checkpoint", runs.lora, "--repo", "tester/tuned", "--dry-run") == 0
    out, err = capsys.readouterr()
    assert out == "model_card.md\n"
    assert (tmp_path / "here/model_card.md").read_text() in err
    assert "adapter_model.safetensors" in err
    assert f"--checkpoint {runs.lora} --repo tester/tuned --card model_card.md" in err
    assert fake_hub.seen("POST") == []


def test_a_dry_run_leaves_a_card_that_was_edited(tune, runs, tmp_path, capsys):
    words = ("--checkpoint", runs.lora, "--repo", "tester/tuned", "--dry-run")
    (tmp_path / "here/model_card.md").write_text("---\nlicense: apache-2.0\n---\nmine")
    assert tune(*words) == 2
    assert "E-FILE-EXISTS" in capsys.readouterr().err
    assert tune(*words, "--card", "model_card.md") == 0
    assert (tmp_path / "here/model_card.md").read_text().endswith("mine")


def test_the_authors_card_is_pushed_as_it_is(tune, runs, tmp_path, capsys, fake_hub):
    card = "---\nlicense: apache-2.0\n---\n# My own words\n"
    (tmp_path / "here/mine.md").write_text(card)
    words = ("--checkpoint", runs.lora, "--repo", "tester/tuned", "--card", "mine.md", "--yes")
    assert tune(*words, "--hf-auth-token", TOKEN) == 0
    out, err = capsys.readouterr()
    assert out == f"{fake_hub.url}/tester/tuned\n"
    assert (fake_hub.repos.root / "tester/tuned/README.md").read_text() == card
    assert "next: tune download tester/tuned" in err
    assert TOKEN not in out + err


def test_a_config_stands_for_its_output_folder(tune, runs, tmp_path, capsys):
    (tmp_path / "here/run.yaml").write_text(yaml.safe_dump({"output_dir": str(runs.full)}))
    assert tune("--config", "run.yaml", "--repo", "tester/tuned", "--dry-run") == 0
    assert "model.safetensors" in capsys.readouterr().err
    (tmp_path / "here/run.yaml").write_text("lr: 1\n")
    assert tune("--config", "run.yaml", "--repo", "tester/tuned", "--dry-run") == 2
    assert tune("--config", "absent.yaml", "--repo", "tester/tuned", "--dry-run") == 3


@pytest.mark.parametrize(
    ("typed", "pushed"), [("y\n", 1), ("yes\n", 1), ("\n", 0), ("n\n", 0), ("", 0)]
)
def test_nothing_goes_without_a_yes(tune, runs, fake_hub, monkeypatch, typed, pushed):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    code = tune("--checkpoint", runs.lora, "--repo", "tester/tuned", typed=typed)
    assert (len(fake_hub.repos.commits()), code) == (pushed, 1 - pushed)


def test_without_a_terminal_only_yes_pushes(tune, runs, fake_hub, capsys):
    assert tune("--checkpoint", runs.lora, "--repo", "tester/tuned") == 2
    assert "--yes pushes without asking" in capsys.readouterr().err
    assert fake_hub.seen("POST") == []


def test_the_card_can_be_edited_first(tune, runs, fake_hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv(
        "EDITOR", "sed -i -e 's/license: mit/license: isc/' -e 's/apache-2.0/cc0-1.0/'"
    )
    words = ("--checkpoint", runs.lora, "--repo", "tester/tuned", "--license", "mit")
    assert tune(*words, typed="e\ny\n") == 0
    pushed = (fake_hub.repos.root / "tester/tuned/README.md").read_text()
    assert "license: isc" in pushed


def test_a_card_that_was_spoilt_cannot_go(tune, runs, fake_hub, monkeypatch, capsys):
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "sed -i -e 's/apache-2.0/cc0-1.0/'")
    assert tune("--checkpoint", runs.lora, "--repo", "tester/tuned", typed="e\ny\n") == 1
    assert "E-LICENCE" in capsys.readouterr().err
    assert fake_hub.seen("POST") == []


def test_an_editor_that_fails_pushes_nothing(tune, runs, fake_hub, monkeypatch, capsys):
    monkeypatch.setenv("VISUAL", "no-such-editor")
    assert tune("--checkpoint", runs.lora, "--repo", "tester/tuned", typed="e\n") == 1
    assert "E-EDITOR" in capsys.readouterr().err
    assert fake_hub.seen("POST") == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--repo", "me/x"), "one of the arguments --checkpoint --config is required"),
        (("--checkpoint", "a", "--config", "b", "--repo", "me/x"), "not allowed with argument"),
        (("--checkpoint", "absent", "--repo", "me/x"), "E-CHECKPOINT-MISSING"),
        (("--checkpoint", "a", "--repo", "me/x", "--card", "c", "--license", "mit"), "E-USAGE"),
    ],
)
def test_wrong_words_are_explained(tune, capsys, words, message):
    assert tune(*words) in (2, 3)
    assert message in capsys.readouterr().err


def test_naming_the_command_and_the_package_loads_nothing_heavy():
    code = (
        "import sys, torchtune_integrations.hub.command, torchtune_integrations.hub\n"
        "print({'torch', 'huggingface_hub', 'yaml', 'httpx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
