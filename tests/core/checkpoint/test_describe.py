"""What a path is said to be, against transformers and PEFT, and what damage is seen."""

import json
import time

import peft
import pytest
from safetensors.torch import load_file, save_file
from torchtune.checkpoint import describe
from torchtune.errors import ConfigError, MissingError
from torchtune.testing import tiny_checkpoint, tiny_rows
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_is_described_as_transformers_sees_it(tmp_path, tied):
    folder = tiny_checkpoint(tmp_path / "m", dtype="bfloat16", tie_word_embeddings=tied)
    report, theirs = describe(folder), AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    words = AutoTokenizer.from_pretrained(folder)
    assert (report["kind"], report["problems"]) == ("model", [])
    assert report["architecture"] == type(theirs).__name__
    assert report["weights"]["parameters"] == theirs.num_parameters()
    assert report["weights"]["dtypes"] == {"bfloat16": theirs.num_parameters()}
    assert report["tied"] is tied
    tokenizer = report["tokenizer"]
    assert tokenizer["vocabulary"] == len(words)
    assert tokenizer["special_tokens"]["bos"] == {"text": words.bos_token, "id": words.bos_token_id}
    assert [token["id"] for token in tokenizer["stop"]] == theirs.generation_config.eos_token_id
    assert words.chat_template.startswith(tokenizer["chat_template"]["begins"][0])


def test_a_folder_of_shards_by_transformers_is_whole_until_one_goes(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint(tmp_path / "m"), dtype="auto")
    model.save_pretrained(tmp_path / "s", max_shard_size="50KB")
    report = describe(tmp_path / "s" / "config.json")
    assert report["problems"] == [] and len(report["weights"]["files"]) > 2
    assert report["weights"]["parameters"] == model.num_parameters()
    (gone, cut, *_) = sorted((tmp_path / "s").glob("model-*"))
    with cut.open("r+b") as file:
        file.truncate(cut.stat().st_size - 1)
    gone.unlink()
    first, second = describe(tmp_path / "s")["problems"]
    assert gone.name in first and f"{cut.name} is cut short" in second


def test_an_adapter_of_peft_is_described_and_held_against_its_base(tmp_path):
    base = tiny_checkpoint(tmp_path / "base")
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj"], use_rslora=True)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(tmp_path / "a")
    report = describe(tmp_path / "a")
    assert (report["kind"], report["rank"], report["alpha"], report["rslora"]) == (
        "adapter",
        4,
        12,
        True,
    )
    assert report["weights"]["parameters"] == model.get_nb_trainable_parameters()[0]
    assert report["base"]["found"] == str(base) and report["problems"] == []
    file = tmp_path / "a" / "adapter_model.safetensors"
    save_file(dict(list(load_file(file).items())[1:]), file)
    assert (
        "missing: base_model.model.model.layers.0.self_attn.q_proj"
        in describe(file.parent)["problems"][0]
    )
    base.rename(tmp_path / "elsewhere")
    assert describe(tmp_path / "a")["base"]["found"] is None


def test_tensors_that_do_not_fit_the_config_are_named(tmp_path):
    folder = tiny_checkpoint(tmp_path / "m")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["more"] = tensors.pop("model.norm.weight")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :8].contiguous()
    save_file(tensors, file)
    (found,) = describe(folder)["problems"]
    assert "missing: model.norm.weight" in found and "unexpected: more" in found
    assert "lm_head.weight [260, 8] for [260, 32]" in found
    (folder / "config.json").write_text("{")
    assert "config.json is not a JSON object" in describe(folder)["problems"][0]


def test_an_architecture_that_is_not_supported_is_described_all_the_same(tmp_path):
    folder = tiny_checkpoint(
        tmp_path / "m", architectures=["MadeUpForCausalLM"], model_type="made_up"
    )
    report = describe(folder)
    assert (report["architecture"], report["supported"]) == ("MadeUpForCausalLM", False)
    assert report["problems"] == [] and report["weights"]["tensors"] == 21


def test_a_builtin_template_is_recognised(tmp_path, shared):
    from torchtune.data import find_template

    folder = tiny_checkpoint(tmp_path / "m", chat_template=find_template("llama3") + "\n")
    assert describe(folder)["tokenizer"]["chat_template"]["builtin"] == "llama3"
    assert describe(shared / "tokenizers" / "llama3")["vocabulary"] == 128_256


def test_rows_are_described(tmp_path):
    report = describe(tiny_rows(tmp_path, 7, form="sharegpt"))
    assert (report["kind"], report["rows"], report["form"]) == ("dataset", 7, "sharegpt")
    assert report["columns"] == {"conversations": "list"}
    (tmp_path / "odd.jsonl").write_text(json.dumps({"what": 1}))
    assert "columns not recognised: what" in describe(tmp_path / "odd.jsonl")["problems"][0]


def test_only_headers_are_read(tmp_path):
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**33], "data_offsets": [0, 2**35]}})
    with (tmp_path / "large.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + 2**35)  # a hole of 32 GiB, which takes no room
    start = time.process_time()  # not the clock's, which a busy machine lengthens
    assert describe(tmp_path / "large.safetensors")["weights"]["parameters"] == 2**33
    assert time.process_time() - start < 1


def test_what_is_none_of_these_is_an_error_that_lists_them(tmp_path):
    with pytest.raises(MissingError, match="no file or folder"):
        describe(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"adapter_config\.json \(an adapter\)"):
        describe(tmp_path)


def test_a_config_of_wrong_types_is_a_problem_and_no_traceback(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": "260"}))
    assert "vocab_size must be a whole number" in " ".join(describe(folder)["problems"])
