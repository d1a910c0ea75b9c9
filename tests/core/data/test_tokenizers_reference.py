"""Ids of every tokenizer format, against the references made with the libraries they come from."""

import json
import shutil

import pytest
import tiktoken
from torchtune.data import auto_tokenizer

MODELS = {
    "llama2": "tokenizers/llama2/tokenizer.model",
    "llama3": "tokenizers/llama3/tokenizer.model",
    "llama4": "tokenizers/llama4/tokenizer.model",
    "mistral_v1": "tokenizers/mistral/tokenizer.model.v1",
    "mistral_v3": "tokenizers/mistral/tokenizer.model.v3",
    "mistral_v7": "tokenizers/mistral/tokenizer.model.v7",
    "stories260k": "models/stories260k/tokenizer.model",
}


@pytest.fixture(scope="module")
def reference(shared):
    return json.loads((shared / "reference/tokenizers.json").read_text())["families"]


@pytest.fixture(scope="module")
def folder(shared, tmp_path_factory):
    def make(family):
        target = tmp_path_factory.mktemp(family)
        shutil.copy(shared / MODELS[family], target / "tokenizer.model")
        return target

    return make


@pytest.mark.parametrize("family", MODELS)
def test_ids_equal_the_reference_and_look_alikes_stay_text(family, folder, reference):
    tokenizer, expected = auto_tokenizer(folder(family)), reference[family]
    assert [[t, tokenizer.encode(t)] for t, _ in expected["encode"]] == expected["encode"]
    for text, ids in expected.get("encode_special", []):
        assert tokenizer.encode(text, special=True) == ids
    for (_, ids), text in zip(expected["encode"], expected.get("decode", []), strict=False):
        assert tokenizer.decode(ids) == text
    assert tokenizer.vocab_size == expected["vocab_size"]
    for text, number in expected.get("special_tokens", {}).items():
        assert tokenizer.encode(text, special=True) == [number]
    assert tokenizer.bos_id == expected.get("bos_id", tokenizer.bos_id)
    assert tokenizer.eos_id == expected.get("eos_id", tokenizer.eos_id)


def test_tokenizer_json_gives_the_ids_of_its_sentencepiece_model(shared, reference):
    tokenizer = auto_tokenizer(shared / "models/stories260k")
    for text, ids in reference["stories260k"]["encode"]:
        assert tokenizer.encode(text) == ids
    assert (tokenizer.bos_id, tokenizer.eos_id, set(tokenizer.stop_ids)) == (1, 2, {1, 2})


def test_qwen2_ids_equal_the_reference(qwen2, reference):
    tokenizer = auto_tokenizer(qwen2)
    for text, ids in reference["qwen2"]["encode"]:
        assert tokenizer.encode(text) == ids
    for text, ids in reference["qwen2"]["encode_special"]:
        assert tokenizer.encode(text, special=True) == ids


def test_llama3_conversion_equals_tiktoken_on_much_text(shared, folder, reference):
    import base64

    lines = (shared / MODELS["llama3"]).read_text().splitlines()
    ranks = {base64.b64decode(a): int(b) for a, b in (line.split() for line in lines)}
    pattern = reference["llama3"]["pattern"]
    theirs = tiktoken.Encoding("llama3", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    ours = auto_tokenizer(folder("llama3"))
    text = (shared / "data/tinyshakespeare.txt").read_text()[:200_000]
    text += (shared / "data/chat/sharegpt_dummy_conversation.json").read_text()[:200_000]
    text += bytes(range(256)).decode("latin-1") * 20
    assert ours.encode(text) == theirs.encode(text, disallowed_special=())
