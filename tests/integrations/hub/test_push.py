"""Pushes to a fake hub through the real huggingface_hub, and what comes back from there."""

import hashlib
import re
from dataclasses import replace

import pytest
from fake_hub.server import READER, STRANGER, TOKEN
from torchtune.errors import ConfigError, TuneError
from torchtune.testing import tiny_checkpoint
from torchtune_integrations.hub import prepare, push


def test_one_commit_holds_all_and_the_next_only_what_changed(hub, runs, tmp_path):
    publication = prepare(runs.lora, "tester/tuned")
    push(publication)
    push(publication.with_card(publication.card + "\nMore.\n", where="card"))
    first, second = hub.repos.commits()
    assert first.summary == "Upload tuned, step 4"
    assert (sorted(first.paths), second.paths) == (sorted(publication.sizes()), ["README.md"])
    assert len(hub.seen("PUT /lfs")) == len({seen.path for seen in hub.seen("PUT /lfs")})


def test_a_broken_upload_goes_on_with_what_had_not_arrived(hub, tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", hidden_size=64, intermediate_size=256)
    publication = prepare(folder, "tester/big", licence="mit")
    weights = publication.sizes()["model.safetensors"]
    hub.fail("cut", "PUT /lfs", times=1, after=100)
    hub.fail("500", "POST .*/commit/", times=1)
    with pytest.raises(TuneError, match=r"E-HUB-DOWN[^$]*not sent again"):
        push(publication)
    assert (hub.repos.commits(), weights > 100_000) == ([], True)
    sent = len(hub.seen("PUT /lfs"))
    push(publication)
    assert len(hub.seen("PUT /lfs")) == sent  # each large file had arrived, none goes twice
    pushed = hub.repos.root / "tester/big/model.safetensors"
    assert pushed.read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_large_file_that_never_got_through_is_sent_by_the_next_push(hub, tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    publication = prepare(folder, "tester/big", licence="mit")
    weights, tokenizer = (
        "/lfs/" + hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", "tokenizer.json")
    )
    hub.fail("cut", f"PUT {weights}", times=6, after=100)  # the library tries six times
    with pytest.raises(TuneError, match=r"E-HUB-NETWORK[^$]*run the command again"):
        push(publication)
    push(publication)
    arrived = [seen.path for seen in hub.seen("PUT /lfs") if seen.status == 200]
    assert sorted(arrived) == sorted([weights, tokenizer])  # each once, over both calls
    assert hub.repos.commits()[0].paths == sorted(publication.sizes())


@pytest.mark.parametrize(
    ("kind", "where", "code"),
    [
        ("401", "POST /api/repos/create", "E-HUB-TOKEN"),
        ("403", "POST .*/preupload/", "E-HUB-TOKEN"),
        ("404", "POST .*/preupload/", "E-HUB-MISSING"),
        ("429", "POST /api/repos/create", "E-HUB-BUSY"),
        ("500", "POST /api/repos/create", "E-HUB-DOWN"),
        ("cut", "POST /api/repos/create", "E-HUB-NETWORK"),
    ],
)
def test_each_failure_says_what_to_do_in_three_lines(hub, runs, kind, where, code):
    hub.fail(kind, where, times=99)
    with pytest.raises(TuneError, match=re.escape(f"error[{code}]")) as caught:
        push(prepare(runs.lora, "tester/tuned"))
    assert len(str(caught.value).splitlines()) == 3
    assert "tester/tuned" in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_no_network_is_said_so(hub, runs, monkeypatch):
    publication = prepare(runs.lora, "tester/tuned")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TuneError, match=r"E-HUB-NETWORK.*cannot be reached"):
        push(publication)


@pytest.mark.parametrize(
    ("token", "repo"), [(READER, "tester/x"), (STRANGER, "tester/x"), ("", "tester/x")]
)
def test_who_may_not_write_there_is_told(hub, runs, monkeypatch, token, repo):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(TuneError, match=r"E-HUB-TOKEN[^$]*may write"):
        push(prepare(runs.lora, repo))
    assert hub.repos.commits() == []


def test_the_environments_token_goes_before_the_given_one(hub, runs, monkeypatch):
    push(prepare(runs.lora, "tester/first"), token=STRANGER)
    monkeypatch.setenv("HF_TOKEN", "")
    push(prepare(runs.lora, "other/second"), token=STRANGER)
    assert [commit.repo for commit in hub.repos.commits()] == ["tester/first", "other/second"]


def test_private_is_private(hub, runs):
    push(prepare(runs.lora, "tester/mine", private=True))
    assert hub.repos.settings("tester/mine")["private"]
    hub.add("tester/seen", {"README.md": "# Seen by all\n"})
    with pytest.raises(ConfigError, match=r"E-HUB-PRIVATE.*in public"):
        push(prepare(runs.lora, "tester/seen", private=True))
    assert (hub.repos.root / "tester/seen/README.md").read_text() == "# Seen by all\n"


def test_weights_of_an_earlier_push_do_not_stay_beside_the_new(hub, runs):
    push(prepare(runs.full, "tester/tuned"))
    (hub.repos.root / "tester/tuned/notes.md").write_text("the author's")
    push(prepare(runs.lora, "tester/tuned"))
    there = {path.name for path in (hub.repos.root / "tester/tuned").iterdir()}
    assert there == {*prepare(runs.lora, "x/y").sizes(), "notes.md"}


def test_the_hub_is_asked_for_a_licence_that_the_base_here_does_not_tell(hub, tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    assert str(prepare(folder, "tester/x", base_model="acme/llama-tiny").licence) == "apache-2.0"
    hub.add("acme/strict", {"README.md": "---\nlicense: cc-by-nc-4.0\n---\n"})
    with pytest.raises(ConfigError, match=r"E-LICENCE.*'cc-by-nc-4.0'"):
        prepare(folder, "tester/x", base_model="acme/strict", licence="mit")


def test_a_head_that_the_hub_refuses_stops_the_push_before_files_go(hub, runs):
    spoilt = replace(prepare(runs.lora, "tester/tuned"), card="---\ntags: [\n---\n# Mine\n")
    with pytest.raises(ConfigError, match=r"E-CARD.*Invalid metadata"):
        push(spoilt)
    assert hub.seen("PUT") == []
