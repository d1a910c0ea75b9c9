"""Merging an adapter's files into its base's, against PEFT's `merge_and_unload`."""

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchtune.checkpoint import merge_adapter
from torchtune.errors import ConfigError, MissingError, TuneError
from torchtune.testing import tiny_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

HALF, FULL = torch.bfloat16, torch.float32


def adapter_of_peft(base: Path, folder: Path, **options) -> Path:
    """Save an adapter whose every matrix is random, as PEFT does."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    settings = {"r": 4, "lora_alpha": 12, "init_lora_weights": False, **options}
    peft.get_peft_model(model, peft.LoraConfig(**settings)).save_pretrained(folder)
    return folder


def merged_by_peft(base: Path, adapter: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    return peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


@pytest.fixture
def base(tmp_path):
    return tiny_checkpoint(tmp_path / "base", dtype="bfloat16")


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"target_modules": "all-linear"}, None),
        ({"target_modules": ["q_proj", "lm_head"], "use_rslora": True}, None),
        ({"target_modules": r".*\.1\.mlp\..*_proj"}, FULL),
    ],
    ids=["all-linear", "rslora and head", "regular expression, wider"],
)
def test_the_merged_files_are_those_of_peft_to_the_bit(base, tmp_path, options, dtype):
    adapter = adapter_of_peft(base, tmp_path / "adapter", **options)
    out = merge_adapter(base, adapter, tmp_path / "out", dtype=dtype)
    wanted, found = (
        merged_by_peft(base, adapter, dtype or HALF),
        load_file(out / "model.safetensors"),
    )
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    changed = load_file(base / "model.safetensors")
    assert any(not torch.equal(found[name].to(HALF), changed[name]) for name in changed)


def test_a_narrower_dtype_is_rounded_once(tmp_path):
    base = tiny_checkpoint(tmp_path / "base", dtype="float32", tie_word_embeddings=True)
    adapter = adapter_of_peft(base, tmp_path / "adapter", target_modules="all-linear")
    out = merge_adapter(base, adapter, tmp_path / "out", dtype=torch.float16)
    wanted, found = merged_by_peft(base, adapter, FULL), load_file(out / "model.safetensors")
    assert all(torch.equal(found[name], wanted[name].half()) for name in found)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float16"


def test_transformers_loads_the_folder_with_tokenizer_template_and_licence(base, tmp_path):
    (base / "LICENSE.txt").write_text("do as you like\n")
    source = {"repo": "them/base", "revision": "5eb63bbbe0"}
    (base / "hub_source.json").write_text(json.dumps({**source, "files": {}}))
    adapter = adapter_of_peft(base, tmp_path / "adapter", target_modules=["v_proj"])
    out = merge_adapter(base, adapter, tmp_path / "deep" / "out")
    chat = [{"role": "user", "content": "hello"}]
    theirs, ours = (AutoTokenizer.from_pretrained(folder) for folder in (base, out))
    ids = ours.apply_chat_template(chat, return_tensors="pt")["input_ids"]
    assert (
        ids.tolist() == theirs.apply_chat_template(chat, return_tensors="pt")["input_ids"].tolist()
    )
    adapted = AutoModelForCausalLM.from_pretrained(base, dtype=FULL)
    adapted = peft.PeftModel.from_pretrained(adapted, adapter)
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=FULL)
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=0, atol=0.05)
    assert (out / "LICENSE.txt").read_text() == "do as you like\n"
    assert json.loads((out / "merged_from.json").read_text())["base"] == {"name": "base", **source}


def test_a_folder_is_replaced_only_when_told_and_only_if_it_is_a_model(base, tmp_path):
    adapter = adapter_of_peft(base, tmp_path / "adapter", target_modules=["v_proj"])
    out = merge_adapter(base, adapter, tmp_path / "out")
    (out / "old").touch()
    with pytest.raises(ConfigError, match="holds a model already"):
        merge_adapter(base, adapter, out)
    merge_adapter(base, adapter, out, force=True)
    assert not (out / "old").exists()
    for wrong in (base, adapter, tmp_path):
        with pytest.raises(ConfigError, match="E-FOLDER-EXISTS"):
            merge_adapter(base, adapter, wrong, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "out"]


def test_a_merge_that_fails_leaves_nothing(base, tmp_path):
    adapter = adapter_of_peft(base, tmp_path / "adapter", target_modules=["v_proj"])
    file = adapter / "adapter_model.safetensors"
    whole = load_file(file)
    save_file({name: 1e9 * tensor for name, tensor in whole.items()}, file)
    with pytest.raises(
        TuneError, match=r"v_proj\.weight has values that are not finite in float16"
    ):
        merge_adapter(base, adapter, tmp_path / "out", dtype=torch.float16)
    save_file(dict(list(whole.items())[1:]), file)
    with pytest.raises(MissingError, match="missing"):
        merge_adapter(base, adapter, tmp_path / "out")
    with pytest.raises(MissingError, match="the order is BASE ADAPTER OUT"):
        merge_adapter(adapter, base, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
