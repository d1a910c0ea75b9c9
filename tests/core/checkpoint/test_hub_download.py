"""Downloads by the real huggingface_hub from a fake hub: what comes, what goes wrong, and on."""

import errno
import json
import os
import time
from collections import namedtuple

import pytest
from fake_hub.server import STRANGER, TOKEN
from huggingface_hub import snapshot_download
from torchtune.checkpoint import download, hub_source
from torchtune.errors import ConfigError, MissingError, TuneError

REPO = "tester/model"
NEEDED = {
    "model-00001-of-00002.safetensors": bytes(range(256)) * 40,
    "model-00002-of-00002.safetensors": bytes(range(255, -1, -1)) * 40,
    "model.safetensors.index.json": "{}",
    **{name: name for name in ("config.json", "generation_config.json", "tokenizer.model")},
    **{name: name for name in ("tokenizer.json", "tokenizer_config.json", "merges.txt")},
    **{name: name for name in ("chat_template.jinja", "README.md", "LICENSE.txt")},
}
NOT_NEEDED = {
    **dict.fromkeys(("pytorch_model.bin", "pytorch_model.bin.index.json", "model.gguf"), "x"),
    **dict.fromkeys(("original/consolidated.00.pth", "original/params.json", "plot.png"), "x"),
    **dict.fromkeys(("onnx/model.onnx", "consolidated.safetensors", "modeling_x.py"), "x"),
    **dict.fromkeys(("model.fp16.safetensors", ".gitattributes", "training_args.bin"), "x"),
}


@pytest.fixture
def model(fake_hub):
    """The folder of a model on the hub, with much that nobody here needs."""
    return fake_hub.add(REPO, {**NEEDED, **NOT_NEEDED})


@pytest.fixture
def no_waiting(monkeypatch):
    """The library waits seconds between its attempts."""
    monkeypatch.setattr(time, "sleep", lambda _: None)


def names(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    relative = {path.relative_to(folder).as_posix() for path in files}
    return {name for name in relative if not name.startswith(".cache/")} - {"hub_source.json"}


def error_of(*args, **kwargs) -> TuneError:
    with pytest.raises(TuneError) as caught:
        download(*args, **kwargs)
    return caught.value


def test_what_is_needed_comes_as_it_is_on_the_hub(model, tmp_path, capfd):
    folder = download(REPO, tmp_path / "models" / "model")
    assert names(folder) == set(NEEDED)
    assert all((folder / name).read_bytes() == (model / name).read_bytes() for name in NEEDED)
    assert f"{REPO}: 12 files, 0.0 MB to download, into {folder}" in capfd.readouterr().err


def test_one_bar_shows_the_bytes(model, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("TQDM_POSITION", "-1")  # also where there is no terminal
    download(REPO, tmp_path / "m")
    bar = capfd.readouterr().err.replace("\r", "\n").strip().splitlines()[1:]
    total = sum(len(content) for content in NEEDED.values()) / 1000
    assert bar[-1].startswith("100%")
    assert f"{total:.1f}k/{total:.1f}k" in bar[-1]
    assert all("B/s" in line for line in bar if line)


def test_the_folder_tells_where_it_came_from(fake_hub, model, tmp_path):
    source = hub_source(download(REPO, tmp_path / "m"))
    assert source["repo"] == REPO
    assert source["revision"] == fake_hub.repos.sha(model)
    assert source["files"]["config.json"] == len("config.json")
    (tmp_path / "hub_source.json").write_text("{}")
    assert hub_source(tmp_path) is None


def test_a_second_run_costs_one_request(fake_hub, model, tmp_path, capfd):
    folder = download(REPO, tmp_path / "m")
    before = len(fake_hub.requests)
    download(REPO, tmp_path / "m")
    assert [seen.path for seen in fake_hub.requests[before:]] == [f"/api/models/{REPO}?blobs=true"]
    assert f"all of {REPO} that was asked for is in {folder} already" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["429", "500", "offline", "no server"])
def test_what_is_there_is_enough_where_the_hub_cannot_be_reached(
    fake_hub, model, tmp_path, capfd, monkeypatch, kind
):
    download(REPO, tmp_path / "m", include=["*.json"])
    if kind == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    elif kind == "no server":
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    else:
        fake_hub.fail(kind, times=10)
    download(REPO, tmp_path / "m", include=["*.json"])
    assert f"all of {REPO} that was asked for is in" in capfd.readouterr().err
    codes = {"429": "E-HUB-BUSY", "500": "E-HUB-DOWN"}
    for other in ({}, {"include": ["*.md"]}, {"include": ["*.json"], "revision": "v1"}):
        error = error_of(REPO, tmp_path / "m", **other)
        assert (error.code, error.exit_code) == (codes.get(kind, "E-HUB-NETWORK"), 3)


def test_patterns_choose_other_files_and_leave_some_out(model, tmp_path):
    assert names(download(REPO, tmp_path / "a", include=["*.pth", "*.gguf"])) == {
        "original/consolidated.00.pth",
        "model.gguf",
    }
    left_out = ["*.safetensors", "LICENSE*"]
    assert names(download(REPO, tmp_path / "b", exclude=left_out)) == {
        name for name in NEEDED if not name.endswith((".safetensors", "LICENSE.txt"))
    }
    error = error_of(REPO, tmp_path / "c", include=["*.saftensors"])
    assert (error.code, error.where) == ("E-HUB-FILES", "*.saftensors")
    assert not (tmp_path / "c").exists()


def test_an_adapter_comes_with_its_config(fake_hub, tmp_path):
    files = {"adapter_config.json": "{}", "adapter_model.safetensors": b"x", "README.md": "x"}
    fake_hub.add("tester/adapter", {**files, "checkpoint-10/adapter_model.safetensors": b"x"})
    assert names(download("tester/adapter", tmp_path / "a")) == set(files)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["pytorch_model.bin"], "pickled weights alone (pytorch_model.bin)"),
        (["model-q4.gguf"], "its weights are model-q4.gguf"),
        (["consolidated.safetensors"], "its weights are consolidated.safetensors"),
        ([], "it has no weights"),
    ],
)
def test_weights_that_cannot_be_read_here_are_not_fetched(fake_hub, tmp_path, files, said):
    fake_hub.add(REPO, dict.fromkeys(["config.json", *files], "x"))
    error = error_of(REPO, tmp_path / "m")
    assert (error.code, error.exit_code) == ("E-HUB-WEIGHTS", 3)
    assert said in error.what
    assert fake_hub.seen("resolve") == []


@pytest.mark.parametrize(
    ("settings", "token", "code", "said", "do"),
    [
        ({"gated": "manual"}, None, "E-HUB-GATED", "terms must be accepted", "/tester/model, then"),
        ({"gated": "auto"}, STRANGER, "E-HUB-GATED", "terms must be accepted", "/tester/model"),
        ({"private": True}, None, "E-HUB-MISSING", "or it is private", "hf auth login"),
        ({"private": True}, STRANGER, "E-HUB-MISSING", "or it is private", "hf auth login"),
        ({}, "hf_nonsense", "E-HUB-TOKEN", "the token that was given", "Tokens"),
    ],
)
def test_who_may_not_read_a_model_learns_how_to(
    fake_hub, tmp_path, settings, token, code, said, do
):
    fake_hub.add(REPO, NEEDED, **settings)
    error = error_of(REPO, tmp_path / "m", token=token)
    assert (type(error), error.code) == (MissingError, code)
    assert said in error.what
    assert do in error.do
    assert token is None or token not in str(error)
    assert token or fake_hub.seen("resolve") == []  # nothing is tried that must fail
    assert names(download(REPO, tmp_path / "m", token=TOKEN)) == set(NEEDED)


def test_a_gated_model_that_is_there_needs_no_login(fake_hub, tmp_path):
    fake_hub.add(REPO, NEEDED, gated="manual")
    download(REPO, tmp_path / "m", token=TOKEN)
    assert names(download(REPO, tmp_path / "m")) == set(NEEDED)


def test_the_login_of_the_machine_goes_before_the_token_given(fake_hub, tmp_path, monkeypatch):
    fake_hub.add(REPO, NEEDED, private=True)
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    assert error_of(REPO, tmp_path / "m", token=TOKEN).code == "E-HUB-MISSING"
    monkeypatch.setenv("HF_TOKEN", "hf_nonsense")
    error = error_of(REPO, tmp_path / "m", token=TOKEN)
    assert (error.code, "HF_TOKEN" in error.what) == ("E-HUB-TOKEN", True)


@pytest.mark.parametrize(
    ("repo", "revision", "code", "said"),
    [
        ("tester/absent", None, "E-HUB-MISSING", "there is no model tester/absent at http"),
        (REPO, "v9", "E-HUB-REVISION", "tester/model has no revision 'v9'"),
        ("a/b/c", None, "E-HUB-NAME", "'a/b/c' is not the name of a model"),
        ("https://huggingface.co/a/b", None, "E-HUB-NAME", "did you mean a/b?"),
    ],
)
def test_a_wrong_name_is_told_from_a_wrong_revision(model, tmp_path, repo, revision, code, said):
    error = error_of(repo, tmp_path / "m", revision=revision)
    assert error.code == code
    assert said in str(error)
    assert not (tmp_path / "m").exists()


def test_a_revision_is_a_branch_a_tag_or_a_commit(fake_hub, model, tmp_path):
    other = fake_hub.add(f"{REPO}@refs/pr/1", {**NEEDED, "config.json": "other"})
    for n, revision in enumerate(("refs/pr/1", fake_hub.repos.sha(other))):
        folder = download(REPO, tmp_path / f"{n}", revision=revision)
        assert (folder / "config.json").read_text() == "other"
        assert hub_source(folder)["revision"] == fake_hub.repos.sha(other)


def test_a_busy_hub_says_how_long_to_wait(fake_hub, model, tmp_path):
    fake_hub.fail("429", seconds=17)
    assert "wait 17 s" in error_of(REPO, tmp_path / "m").do


def test_a_hub_that_does_not_answer_is_given_up(fake_hub, model, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
    fake_hub.fail("hang", seconds=2)
    assert error_of(REPO, tmp_path / "m").code == "E-HUB-NETWORK"


def test_a_broken_connection_is_taken_up_where_it_broke(fake_hub, model, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500)
    fake_hub.fail("cut", "GET .*model-00002-of", after=1000)
    folder = download(REPO, tmp_path / "m")
    asked = fake_hub.seen("GET .*model-00002-of")
    assert [seen.range for seen in asked] == ["", "bytes=1000-"]
    name = "model-00002-of-00002.safetensors"
    assert (folder / name).read_bytes() == NEEDED[name]


@pytest.mark.parametrize("kind", ["cut", "500"])
def test_after_a_failure_only_what_is_missing_comes(fake_hub, model, tmp_path, no_waiting, kind):
    fake_hub.fail(kind, "GET .*model-00002-of", times=100)
    assert error_of(REPO, tmp_path / "m").code in ("E-HUB-NETWORK", "E-HUB-DOWN")
    came = names(tmp_path / "m")
    assert "model-00001-of-00002.safetensors" in came
    assert "model-00002-of-00002.safetensors" not in came
    fake_hub.mend()
    before = len(fake_hub.requests)
    assert names(download(REPO, tmp_path / "m")) == set(NEEDED)
    got = [seen.path for seen in fake_hub.requests[before:] if seen.method == "GET"]
    assert {path.rpartition("/")[2] for path in got if "resolve" in path} == set(NEEDED) - came


@pytest.mark.parametrize(("kind", "code"), [("500", "E-HUB-DOWN"), ("429", "E-HUB-BUSY")])
def test_trouble_at_one_file_has_its_own_name(fake_hub, model, tmp_path, no_waiting, kind, code):
    fake_hub.fail(kind, "HEAD .*model-00002-of", times=100, seconds=5)
    assert error_of(REPO, tmp_path / "m").code == code


def test_a_disk_that_cannot_be_written_is_not_called_a_network(fake_hub, model, tmp_path):
    (tmp_path / "file").touch()
    error = error_of(REPO, tmp_path / "file" / "m")
    assert (error.code, error.where) == ("E-DISK", str(tmp_path / "file" / "m"))


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "model.safetensors"), "E-DISK-SPACE"),
        (RuntimeError("Data processing error: CAS service error"), "E-HUB-NETWORK"),  # of hf_xet
    ],
)
def test_what_the_library_lets_through_is_explained(
    fake_hub, model, tmp_path, monkeypatch, raised, code
):
    def fail(*_, **__):
        raise raised

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    assert error_of(REPO, tmp_path / "m").code == code


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "config.json"])
def test_a_file_that_came_damaged_does_not_stay(fake_hub, model, tmp_path, name):
    fake_hub.fail("corrupt", f"GET .*/{name}")
    error = error_of(REPO, tmp_path / "m")
    assert (error.code, name in error.what) == ("E-HUB-DAMAGED", True)
    assert name not in names(tmp_path / "m")
    assert hub_source(tmp_path / "m")["files"] == {}
    folder = download(REPO, tmp_path / "m")
    assert (folder / name).read_bytes() == (model / name).read_bytes()


def test_a_disk_that_is_too_small_is_found_before_the_first_byte(fake_hub, tmp_path, monkeypatch):
    fake_hub.add(REPO, {"config.json": "{}", "model.safetensors": bytes(3_000_000)})
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 0, 1_200_000))
    error = error_of(REPO, tmp_path / "m")
    assert (error.code, error.exit_code) == ("E-DISK-SPACE", 3)
    assert error.what == "tester/model needs 3.0 MB, and 1.2 MB are free"
    assert fake_hub.seen("resolve") == []
    assert not (tmp_path / "m").exists()


def test_a_folder_with_something_else_is_left_alone(fake_hub, model, tmp_path):
    fake_hub.add("other/model", NEEDED)
    download(REPO, tmp_path / "m")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("mine")
    for repo, folder in (("other/model", "m"), (REPO, "notes"), (REPO, "notes/README.md")):
        error = error_of(repo, tmp_path / folder)
        assert (type(error), error.code) == (ConfigError, "E-HUB-FOLDER")
    assert (tmp_path / "notes" / "README.md").read_text() == "mine"


def test_what_the_library_itself_brought_is_taken_over(fake_hub, model, tmp_path):
    snapshot_download(REPO, local_dir=tmp_path / "m", allow_patterns="*.safetensors")
    before = len(fake_hub.requests)
    assert names(download(REPO, tmp_path / "m")) >= set(NEEDED)
    got = [seen for seen in fake_hub.requests[before:] if "resolve" in seen.path]
    assert not any("00001-of" in seen.path for seen in got if seen.method == "GET")


def test_a_newer_commit_replaces_what_changed_and_drops_what_went(fake_hub, model, tmp_path):
    folder = download(REPO, tmp_path / "m")
    before = len(fake_hub.requests)
    for name in NEEDED:
        if name.startswith("model"):
            (model / name).unlink()
    (model / "model.safetensors").write_bytes(b"newer")
    download(REPO, tmp_path / "m")
    assert names(folder) == {n for n in NEEDED if not n.startswith("model")} | {"model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == b"newer"
    got = [seen for seen in fake_hub.requests[before:] if seen.method == "GET"]
    [new] = [seen for seen in got if "resolve" in seen.path]
    assert new.path.endswith("/model.safetensors")


def test_what_a_killed_download_left_is_removed(model, tmp_path):
    left = tmp_path / "m/.cache/huggingface/download/model.abc.incomplete"
    live = left.with_name("model.def.incomplete")
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x")
    live.write_bytes(b"x")
    os.utime(left, (time.time() - 3600,) * 2)
    download(REPO, tmp_path / "m")
    assert (left.exists(), live.exists()) == (False, True)


def test_no_token_is_in_what_is_written(fake_hub, tmp_path, capfd, monkeypatch):
    fake_hub.add(REPO, NEEDED, private=True)
    download(REPO, tmp_path / "m", token=TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    download(REPO, tmp_path / "n")
    said = capfd.readouterr()
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert TOKEN not in said.out + said.err
    assert not any(TOKEN.encode() in content for content in written)
    assert fake_hub.seen("resolve")[0].headers["authorization"] == f"Bearer {TOKEN}"
    assert json.loads((tmp_path / "m/hub_source.json").read_text())["repo"] == REPO
