"""Checkpoint folders: what is read, what is written, what is said when something is wrong."""

import json
import shutil

import pytest
from torchtune.data import ChatFormat, Message, auto_tokenizer, tokenizer_json
from torchtune.errors import ConfigError, MissingError
from transformers import AutoTokenizer

FILES = {
    "llama2": "tokenizers/llama2/tokenizer.model",
    "llama3": "tokenizers/llama3/tokenizer.model",
    "mistral_v3": "tokenizers/mistral/tokenizer.model.v3",
    "stories260k": "models/stories260k/tokenizer.model",
}


@pytest.mark.parametrize("family", FILES)
def test_a_saved_folder_gives_the_same_ids_in_transformers(family, shared, tmp_path):
    (tmp_path / "base").mkdir()
    shutil.copy(shared / FILES[family], tmp_path / "base/tokenizer.model")
    tokenizer = auto_tokenizer(tmp_path / "base", "llama3" if family == "llama3" else "llama2")
    tokenizer.save(tmp_path / "saved")
    theirs, ours = (
        AutoTokenizer.from_pretrained(tmp_path / "saved"),
        auto_tokenizer(tmp_path / "saved"),
    )
    families = json.loads((shared / "reference/tokenizers.json").read_text())["families"]
    for text, ids in families[family]["encode"]:
        assert theirs.encode(text, add_special_tokens=False, split_special_tokens=True) == ids
        assert ours.encode(text) == ids
    assert theirs.encode("a")[0] == theirs.bos_token_id == ours.bos_id
    assert theirs.eos_token_id == ours.eos_id == tokenizer.eos_id
    assert theirs.chat_template == ours.chat_template == tokenizer.chat_template


def test_a_class_that_splits_texts_its_own_way_is_not_written(shared, tmp_path):
    shutil.copytree(shared / "models/stories260k", tmp_path / "base")
    config = json.loads((tmp_path / "base/tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "LlamaTokenizer"}
    (tmp_path / "base/tokenizer_config.json").chmod(0o644)
    (tmp_path / "base/tokenizer_config.json").write_text(json.dumps(config))
    ours, text = auto_tokenizer(tmp_path / "base"), "<s>two  spaces</s><s>again"
    ours.save(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs.encode(text, add_special_tokens=False) == ours.encode(text, special=True)


def test_stop_tokens_come_from_every_file_and_survive_saving(chatml, tmp_path):
    shutil.copytree(chatml, tmp_path / "base")
    (tmp_path / "base/generation_config.json").write_text('{"eos_token_id": [0, 7]}')
    (tmp_path / "base/config.json").write_text('{"eos_token_id": 1}')
    tokenizer = auto_tokenizer(tmp_path / "base")
    assert tokenizer.stop_ids == (2, 0, 7, 1)
    tokenizer.save(tmp_path / "saved")
    assert auto_tokenizer(tmp_path / "saved").stop_ids == (2, 0, 7)


@pytest.mark.parametrize("place", ["jinja", "config", "named", "json"])
def test_the_template_is_found_wherever_it_is(place, chatml, tmp_path):
    shutil.copytree(chatml, tmp_path / "base")
    config = json.loads((chatml / "tokenizer_config.json").read_text())
    old = config.pop("chat_template")
    if place == "jinja":
        (tmp_path / "base/chat_template.jinja").write_text("NEW")
        config["chat_template"] = old  # the file wins, as in transformers
    elif place == "config":
        config["chat_template"] = "NEW"
    elif place == "named":
        named = {"rag": "OLD", "default": "NEW"}
        config["chat_template"] = [{"name": n, "template": t} for n, t in named.items()]
    else:
        (tmp_path / "base/chat_template.json").write_text('{"chat_template": "NEW"}')
    (tmp_path / "base/tokenizer_config.json").write_text(json.dumps(config))
    assert auto_tokenizer(tmp_path / "base").chat_template == "NEW"
    if place in ("jinja", "config"):
        assert AutoTokenizer.from_pretrained(tmp_path / "base").chat_template == "NEW"


def test_tokens_that_only_the_config_knows_are_added(chatml, tmp_path):
    shutil.copytree(chatml, tmp_path / "base")
    config = json.loads((chatml / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {"2000": {"content": "<|new|>", "special": True}}
    (tmp_path / "base/tokenizer_config.json").write_text(json.dumps(config))
    ours = auto_tokenizer(tmp_path / "base")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "base")
    text = "a<|new|>b"
    assert ours.encode(text, special=True) == theirs.encode(text, add_special_tokens=False)
    assert 2000 not in ours.encode(text) and 2000 in ours.encode(text, special=True)


def test_a_bare_tokenizer_json_takes_its_named_tokens_from_the_models_config(chatml, tmp_path):
    shutil.copy(chatml / "tokenizer.json", tmp_path / "tokenizer.json")
    (tmp_path / "config.json").write_text('{"bos_token_id": 0, "eos_token_id": [2, 1]}')
    tokenizer = auto_tokenizer(tmp_path, "alpaca")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids) == (0, 2, (2, 1))
    assert ChatFormat(tokenizer).prompt([Message("user", "hi")])[0] == 0
    tokenizer.save(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (theirs.bos_token_id, theirs.eos_token_id) == (0, 2)


def test_missing_and_broken_files_are_named(tmp_path, chatml):
    with pytest.raises(MissingError, match="no such folder"):
        auto_tokenizer(tmp_path / "nowhere")
    with pytest.raises(MissingError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        auto_tokenizer(tmp_path)
    with pytest.raises(MissingError, match="no such file"):
        tokenizer_json(tmp_path / "tokenizer.json")
    for name, content, code in [
        ("tokenizer.json", "{", "E-TOKENIZER"),
        ("tokenizer.model", "nonsense", "E-TOKENIZER"),
        ("tokenizer.model", "IQ== 0\nIg== 1\n", "E-TOKENIZER"),
        ("tokenizer.model", "IQ== 0\nnot a line\n", "E-TOKENIZER"),
    ]:
        folder = tmp_path / f"{len(content)}"
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(ConfigError, match=code) as caught:
            auto_tokenizer(folder)
        assert name in str(caught.value) or str(folder) in str(caught.value)


def test_broken_json_beside_a_tokenizer_is_named(tmp_path, chatml):
    shutil.copytree(chatml, tmp_path / "base")
    (tmp_path / "base/tokenizer_config.json").write_text('{"bos_token": ')
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json"):
        auto_tokenizer(tmp_path / "base")


def test_what_was_used_is_read_back_from_the_saved_folder(chatml, tmp_path):
    form = ChatFormat(auto_tokenizer(chatml, "chatml"))
    form.tokenizer.save(tmp_path / "saved")
    again = ChatFormat(auto_tokenizer(tmp_path / "saved"))
    assert again.prompt([Message("user", "hi")]) == form.prompt([Message("user", "hi")])
    assert (tmp_path / "saved/chat_template.jinja").read_text() == form.template
