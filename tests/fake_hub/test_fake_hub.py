"""The fake hub is a hub to the real huggingface_hub: downloads, uploads, refusals, mishaps."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from fake_hub import server
from fake_hub.server import READER, STRANGER, TOKEN
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

FILES = {"config.json": "{}\n", "a/model.safetensors": bytes(range(256)) * 40, "README.md": "Hi\n"}


pytestmark = [
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # the library's own
    pytest.mark.filterwarnings("ignore:Warnings while validating metadata:UserWarning"),
]


def content(folder):
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    relative = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {name: data for name, data in relative.items() if not name.startswith(".cache")}


def test_a_model_arrives_as_it_is(fake_hub, tmp_path):
    folder = fake_hub.add("tester/model", FILES)
    assert content(snapshot_download("tester/model", local_dir=tmp_path / "m")) == content(folder)


def test_a_connection_that_breaks_is_taken_up_at_the_byte_where_it_broke(
    fake_hub, tmp_path, monkeypatch
):
    # the library keeps whole pieces of a broken file, of 10 MB unless told otherwise
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500)
    folder = fake_hub.add("tester/model", FILES)
    fake_hub.fail("cut", "GET .*safetensors", after=1000)
    assert content(snapshot_download("tester/model", local_dir=tmp_path / "m")) == content(folder)
    asked = [seen.range for seen in fake_hub.seen("GET .*resolve/.*safetensors")]
    assert asked == ["", "bytes=1000-"]


def test_what_is_uploaded_is_what_lies_in_the_repository(fake_hub, tmp_path):
    source = fake_hub.add("tester/source", FILES)
    api = HfApi(token=TOKEN)
    api.create_repo("tester/new", private=True)
    pushed = api.upload_folder(
        repo_id="tester/new", folder_path=source, commit_message="First", delete_patterns="*.old"
    )
    assert content(fake_hub.repos.root / "tester/new") == content(source)
    [commit] = fake_hub.repos.commits()
    assert (commit.sha, commit.summary, sorted(commit.paths)) == (
        pushed.oid,
        "First",
        sorted(FILES),
    )
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token=STRANGER).model_info("tester/new")


def test_a_large_upload_goes_in_parts_and_goes_on_after_a_break(fake_hub):
    fake_hub.part_size = 3000
    source = fake_hub.add("tester/source", FILES)
    api = HfApi(token=TOKEN)
    api.create_repo("tester/new")
    fake_hub.fail("cut", "PUT /lfs/.*/2", after=100)
    fake_hub.fail("500", "PUT /lfs/.*/3")
    api.upload_folder(repo_id="tester/new", folder_path=source)
    assert content(fake_hub.repos.root / "tester/new") == content(source)
    assert [seen.status for seen in fake_hub.seen("PUT")] == [200, 0, 200, 500, 200, 200]


def test_a_large_file_that_the_hub_has_is_not_sent_again(fake_hub):
    source = fake_hub.add("tester/source", FILES)
    api = HfApi(token=TOKEN)
    for name in ("tester/new", "tester/newer"):
        api.create_repo(name)
        api.upload_folder(repo_id=name, folder_path=source)
    assert len(fake_hub.seen("PUT")) == 1


def test_a_file_that_changed_on_its_way_up_is_not_taken(fake_hub, tmp_path):
    source = fake_hub.add("tester/source", FILES)
    api = HfApi(token=TOKEN)
    api.create_repo("tester/new")
    fake_hub.fail("corrupt", "PUT")
    with pytest.raises(RuntimeError, match="safetensors"):
        api.upload_folder(repo_id="tester/new", folder_path=source)
    assert content(fake_hub.repos.root / "tester/new") == {}


def test_the_tip_and_older_commits_are_found_by_name_and_by_id(fake_hub, tmp_path):
    fake_hub.add("tester/model", FILES)
    fake_hub.add("tester/model@v1", {"config.json": '{"v": 1}'})
    api = HfApi(token=TOKEN)
    before = api.model_info("tester/model").sha
    api.upload_file(repo_id="tester/model", path_in_repo="new.txt", path_or_fileobj=b"new")
    names = {file.rfilename for file in api.model_info("tester/model", revision=before).siblings}
    assert names == set(FILES)
    assert content(snapshot_download("tester/model", revision="v1", local_dir=tmp_path / "v1")) == {
        "config.json": b'{"v": 1}'
    }
    with pytest.raises(RevisionNotFoundError):
        api.model_info("tester/model", revision="v2")


@pytest.mark.parametrize(
    ("token", "error"),
    [(None, GatedRepoError), (STRANGER, GatedRepoError), ("hf_nonsense", HfHubHTTPError)],
)
def test_a_gated_model_is_for_those_let_in(fake_hub, tmp_path, token, error):
    fake_hub.add("tester/model", FILES, gated="manual")
    with pytest.raises(error):
        snapshot_download("tester/model", local_dir=tmp_path / "m", token=token)
    snapshot_download("tester/model", local_dir=tmp_path / "m", token=TOKEN)


def test_a_token_says_who_it_is_of_and_what_it_may_do(fake_hub):
    fake_hub.add("tester/model", FILES)
    assert HfApi(token=READER).whoami()["name"] == "tester"
    for token in (READER, STRANGER):
        with pytest.raises(HfHubHTTPError, match="403"):
            HfApi(token=token).upload_file(
                repo_id="tester/model", path_in_repo="x", path_or_fileobj=b"x"
            )
    with pytest.raises(HfHubHTTPError, match="409"):
        HfApi(token=TOKEN).create_repo("tester/model")
    HfApi(token=TOKEN).create_repo("tester/model", exist_ok=True)


def test_a_card_with_bad_yaml_is_refused(fake_hub):
    fake_hub.add("tester/model", FILES)
    for text, error in ((b"---\nlicense: mit\n---\n", None), (b"---\n[a: b\n---\n", ValueError)):
        push = dict(repo_id="tester/model", path_in_repo="README.md", path_or_fileobj=text)
        if error:
            with pytest.raises(error, match=r"README\.md"):
                HfApi(token=TOKEN).upload_file(**push)
        else:
            HfApi(token=TOKEN).upload_file(**push)
    assert HfApi().model_info("tester/model").card_data.license == "mit"


def test_a_shell_can_serve_a_folder_and_order_failures(fake_hub):
    fake_hub.add("tester/model", FILES)
    command = [sys.executable, server.__file__, "--root", str(fake_hub.repos.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()
        order = json.dumps({"kind": "500", "pattern": "GET /api/models"}).encode()
        urllib.request.urlopen(f"{url}/_fake/fail", data=order)
        with pytest.raises(urllib.error.HTTPError, match="500"):
            urllib.request.urlopen(f"{url}/api/models/tester/model")
        assert json.load(urllib.request.urlopen(f"{url}/api/models/tester/model"))["sha"]
        assert len(json.load(urllib.request.urlopen(f"{url}/_fake/requests"))) == 2
        process.terminate()
