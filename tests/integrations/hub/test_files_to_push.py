"""Which files go up, what is changed in them, and what is refused."""

import hashlib
import json
from pathlib import Path

import pytest
from torchtune.errors import ConfigError, Faults, MissingError, TuneError
from torchtune.testing import tiny_checkpoint
from torchtune_integrations.hub import prepare

TOKENIZER = {
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def digests(folder: Path) -> dict[Path, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_weights_tokenizer_licence_picture_and_badge_go_and_nothing_else(runs):
    beside = TOKENIZER | {"LICENSE", "badge.svg", "loss.png"}
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    assert set(prepare(runs.lora, "me/x").files) == beside | adapter
    assert set(prepare(runs.full, "me/x").files) == beside | {"config.json", "model.safetensors"}


def test_an_adapter_names_its_base_by_the_hubs_id_and_the_folder_stays_as_it_is(runs):
    before = digests(runs.lora)
    sent = json.loads(prepare(runs.lora, "me/x").files["adapter_config.json"])
    there = json.loads((runs.lora / "latest/adapter_config.json").read_text())
    assert sent == {**there, "base_model_name_or_path": "acme/llama-tiny"}
    assert digests(runs.lora) == before


def test_an_adapter_of_an_unknown_base_needs_its_name(runs, own_copy):
    run = own_copy(runs.lora / "step_000004")
    config = json.loads((run / "adapter_config.json").read_text())
    adapter = own_copy(runs.base)  # any folder that is no download
    for name in ("hub_source.json", "README.md", "config.json", "model.safetensors"):
        (adapter / name).unlink()
    (adapter / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "/gone"})
    )
    weights = (run / "adapter_model.safetensors").read_bytes()
    (adapter / "adapter_model.safetensors").write_bytes(weights)
    with pytest.raises(
        ConfigError, match=r"E-PUSH-BASE.*'gone' is unknown[^$]*--base-model USER/NAME"
    ):
        prepare(adapter, "me/x")
    sent = prepare(adapter, "me/x", base_model="acme/base").files["adapter_config.json"]
    assert json.loads(sent)["base_model_name_or_path"] == "acme/base"


def test_another_base_than_the_downloaded_is_refused(runs):
    with pytest.raises(
        ConfigError, match=r"E-PUSH-BASE.*from 'acme/llama-tiny', not from 'me/mit'"
    ):
        prepare(runs.lora, "me/x", base_model="me/mit")


def test_places_on_this_disk_leave_the_configs(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", _name_or_path="/home/alice/models/base")
    sent = json.loads(prepare(folder, "me/x").files["config.json"])
    assert "_name_or_path" not in sent
    assert sent["model_type"] == "llama"


def test_shards_go_with_their_index_and_pickles_stay(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    shard = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / shard)
    from safetensors import safe_open

    with safe_open(folder / shard, "pt") as file:
        index = {"weight_map": dict.fromkeys(file.keys(), shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("pytorch_model.bin", "consolidated.pt", "optimizer.pt", "other.safetensors"):
        (folder / name).write_bytes(b"x")
    weights = {name for name in prepare(folder, "me/x").files if "model" in name or "." not in name}
    assert weights == {shard, "model.safetensors.index.json"}


def test_a_model_in_pickles_alone_is_refused(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(MissingError, match=r"pytorch_model.bin"):
        prepare(folder, "me/x")


def test_a_damaged_step_is_not_published(runs, own_copy):
    run = own_copy(runs.lora)
    path = run / "step_000004" / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(MissingError, match=r"E-CHECKPOINT-DAMAGED.*adapter_model.safetensors"):
        prepare(run, "me/x")


SECRETS = {
    "hf_" + "aB3" * 11: "Hugging Face token",
    "sk-proj-" + "a1B2" * 8: "secret key",
    "AKIA" + "Z9" * 8: "AWS access key",
    "ghp_" + "x1" * 18: "GitHub token",
    "-----BEGIN OPENSSH PRIVATE KEY-----": "private key",
    "postgres://bob:hunter2@db/x": "password in an address",
}


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_in_a_file_or_a_card_is_refused_and_not_shown(tmp_path, secret):
    folder = tiny_checkpoint(tmp_path / "model", note=secret)
    with pytest.raises(ConfigError, match=rf"E-SECRET.*config.json.*{SECRETS[secret]}") as caught:
        prepare(folder, "me/x")
    assert secret not in str(caught.value)
    clean, card = tiny_checkpoint(tmp_path / "clean"), tmp_path / "card.md"
    card.write_text(f"# Mine\n\nwritten with {secret}\n")
    with pytest.raises(ConfigError, match=r"E-SECRET[^$]*card.md:3"):
        prepare(clean, "me/x", card=card)


def test_files_that_are_called_like_secrets_are_all_named(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    for name in (".env", "id_rsa", "server.pem", "sub/.netrc"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    with pytest.raises(Faults) as caught:
        prepare(folder, "me/x")
    for name in (".env", "id_rsa", "server.pem", ".netrc"):
        assert f"E-SECRET]: {name} looks like a secret" in str(caught.value)


@pytest.mark.parametrize(
    "repo", ["name", "a/b/c", "me/", "/x", "me/a b", "me/a..b", "me/x.git", "../x"]
)
def test_a_name_that_the_hub_does_not_take_is_refused(tmp_path, repo):
    with pytest.raises(ConfigError, match=r"E-HUB-NAME[^$]*USER/NAME"):
        prepare(tiny_checkpoint(tmp_path / "model"), repo)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(TuneError, match="E-CHECKPOINT-MISSING"):
        prepare(tmp_path, "me/x")
