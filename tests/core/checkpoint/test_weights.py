"""Weights on disk: what transformers saves we load, what we save it loads, and bad files."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchtune.checkpoint import (
    RunFolder,
    load_model,
    read_weights,
    save_model,
    weights_digest,
)
from torchtune.distributed import World
from torchtune.errors import ConfigError, MissingError

transformers = pytest.importorskip("transformers")
SIZES = dict(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


class Bag(nn.Module):
    """A model that is nothing but its named parameters, in the order given."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            module: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in dict(module.named_children()):
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(last, nn.Parameter(tensor.clone()))


def reference(*, tied: bool = False, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=tied)
    return transformers.LlamaForCausalLM(config).to(dtype)


def bag_of(model: nn.Module) -> Bag:
    return Bag({name: p.detach() for name, p in model.named_parameters()})


def zeroed(model: nn.Module) -> Bag:
    return Bag({name: torch.zeros_like(p) for name, p in model.named_parameters()})


def assert_same_weights(model: nn.Module, other: nn.Module) -> None:
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    assert set(ours) == set(theirs)
    for name in ours:
        assert_close(ours[name], theirs[name], rtol=0, atol=0)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["1GB", "5KB"])
def test_loads_what_transformers_saves(tmp_path, tied, shard):
    theirs = reference(tied=tied)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "5KB")
    ours = zeroed(theirs)
    assert load_model(ours, tmp_path) == set(dict(theirs.named_parameters()))
    assert_same_weights(ours, theirs)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("limit", [2**30, 5000])
def test_transformers_loads_what_we_save(tmp_path, tied, limit):
    theirs = reference(tied=tied)
    config = {**theirs.config.to_dict(), "torch_dtype": "float16"}
    save_model(bag_of(theirs), tmp_path, world=World(), config=config, max_shard_bytes=limit)
    assert (tmp_path / "model.safetensors.index.json").exists() == (limit == 5000)
    assert all(file.stat().st_size < 8000 for file in tmp_path.glob("model-*.safetensors"))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float32  # config.json says what the files hold
    assert_same_weights(loaded, theirs)


def test_casts_to_the_dtype_of_the_file_and_back(tmp_path):
    theirs = reference()
    config = theirs.config.to_dict()
    save_model(bag_of(theirs), tmp_path, world=World(), config=config, dtype=torch.bfloat16)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same_weights(loaded, theirs.to(torch.bfloat16))
    ours = zeroed(reference())
    load_model(ours, tmp_path)
    assert_same_weights(ours, theirs.float())


def test_safetensors_reads_every_dtype_and_shape_we_write(tmp_path):
    from safetensors.torch import load_file

    tensors = {
        "odd": torch.randn(3, dtype=torch.bfloat16),
        "wide": torch.randn(2, 3, dtype=torch.float64),
        "flags": torch.tensor([True, False, True]),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 4),
        "turned": torch.randn(4, 5).t(),
        "eight": torch.randn(5).to(torch.float8_e4m3fn),
    }
    model = nn.Module()
    for name, tensor in tensors.items():
        model.register_buffer(name, tensor)
    save_model(model, tmp_path, world=World(), config={})
    read = load_file(tmp_path / "model.safetensors")
    assert set(read) == set(tensors)
    entries = [(read[name], read_weights(tmp_path).entry(name)) for name in read]
    assert all(entry.begin % tensor.element_size() == 0 for tensor, entry in entries)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name].float(), tensor.float())


def test_ignores_what_old_checkpoints_hold_besides(tmp_path):
    from safetensors.torch import save_file

    theirs = reference(tied=True)
    tensors = {name: p.detach().clone() for name, p in theirs.named_parameters()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(tensors, tmp_path / "model.safetensors")
    ours = zeroed(theirs)
    load_model(ours, tmp_path)
    assert_same_weights(ours, theirs)


def test_refuses_a_head_that_a_tied_model_would_lose(tmp_path):
    reference(tied=False).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"unexpected: lm_head\.weight"):
        load_model(zeroed(reference(tied=True)), tmp_path)


def test_names_missing_unexpected_and_misshapen_tensors_in_one_error(tmp_path):
    reference().save_pretrained(tmp_path)
    model = zeroed(reference())
    del model.get_submodule("model.norm").weight
    model.register_parameter("head", nn.Parameter(torch.zeros(2)))
    model.get_submodule("lm_head").weight = nn.Parameter(torch.zeros(63, 16))
    with pytest.raises(MissingError) as caught:
        load_model(model, tmp_path)
    text = str(caught.value)
    assert "missing: head;" in text
    assert "unexpected: model.norm.weight;" in text
    assert "misshapen: lm_head.weight [64, 16] for [63, 16]" in text
    assert str(tmp_path) in text and text.count("\n") == 2


def test_of_many_names_an_error_gives_the_first_few_and_counts_the_rest(tmp_path):
    reference().save_pretrained(tmp_path)
    model = zeroed(reference())
    for number in range(40):
        model.register_parameter(f"head_{number:02}", nn.Parameter(torch.zeros(2)))
    with pytest.raises(MissingError, match="missing: head_00, head_01, head_02 and 37 more\n"):
        load_model(model, tmp_path)


def test_skipped_names_need_not_be_there_and_stay_as_they_are(tmp_path):
    reference().save_pretrained(tmp_path)
    model = zeroed(reference())
    model.register_parameter("lora_a", nn.Parameter(torch.full((2,), 3.0)))
    assert "lora_a" not in load_model(model, tmp_path, skip={"lora_a"})
    assert model.lora_a.tolist() == [3.0, 3.0]


def test_reads_one_tensor_at_a_time_by_name(tmp_path):
    theirs = reference()
    theirs.save_pretrained(tmp_path, max_shard_size="5KB")
    weights = read_weights(tmp_path)
    name = "model.layers.1.mlp.up_proj.weight"
    assert weights.shape(name) == (32, 16)
    assert torch.equal(weights[name], theirs.state_dict()[name])
    assert set(weights) == set(dict(theirs.named_parameters()))


def damaged(folder: Path, *, keep: int) -> Path:
    reference().save_pretrained(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    return file


@pytest.mark.parametrize("keep", [0, 5, 100, 3000])
def test_a_file_cut_short_is_named_with_its_sizes(tmp_path, keep):
    file = damaged(tmp_path, keep=keep)
    with pytest.raises(MissingError, match=rf"cut short: {keep} bytes of at least \d+") as caught:
        read_weights(tmp_path)
    assert str(file) in str(caught.value) and caught.value.exit_code == 3


def test_a_file_cut_by_its_last_byte_is_named_with_its_whole_size(tmp_path):
    reference().save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    damaged(tmp_path, keep=size - 1)
    with pytest.raises(MissingError, match=f"{size - 1} bytes of at least {size}"):
        read_weights(tmp_path)


@pytest.mark.parametrize("content", [b"<html>" * 100, b"\2\0\0\0\0\0\0\0[]", b"\1\0\0\0\0\0\0\0{"])
def test_a_file_of_another_kind_is_named(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(MissingError, match=r"model\.safetensors"):
        read_weights(tmp_path)


def test_absent_shards_and_tensors_of_an_index_are_named(tmp_path):
    reference().save_pretrained(tmp_path, max_shard_size="5KB")
    index = tmp_path / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    first = sorted(tmp_path.glob("model-*.safetensors"))[0]
    fields["weight_map"]["extra.weight"] = first.name
    index.write_text(json.dumps(fields))
    with pytest.raises(MissingError, match=r"no file holds extra\.weight"):
        read_weights(tmp_path)
    first.unlink()
    with pytest.raises(MissingError, match=first.name):
        read_weights(tmp_path)


def test_pickled_weights_are_never_read(tmp_path):
    torch.save(reference().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(MissingError, match=r"pickled weights \(pytorch_model\.bin\)"):
        read_weights(tmp_path)


def test_a_folder_without_weights_and_no_folder_are_told_apart(tmp_path):
    with pytest.raises(MissingError, match=r"holds no model\.safetensors"):
        read_weights(tmp_path)
    with pytest.raises(MissingError, match="no such folder"):
        read_weights(tmp_path / "absent")


def test_the_digest_tells_weights_apart_and_nothing_else(tmp_path):
    model = reference()
    model.save_pretrained(tmp_path / "a", max_shard_size="5KB")
    model.save_pretrained(tmp_path / "b", max_shard_size="5KB")
    (tmp_path / "b/notes.txt").write_text("not a weight")
    digest = weights_digest(tmp_path / "a")
    assert len(digest) == 64 and digest == weights_digest(tmp_path / "b")
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-3
    model.save_pretrained(tmp_path / "c", max_shard_size="5KB")
    assert digest != weights_digest(tmp_path / "c")


def test_the_manifest_has_the_sha256_of_what_was_streamed(tmp_path):
    sizes = [3, 400_000, 1_100_000, 5, 700_000, 300_000, 9_000_000]  # joined, direct, and mixed
    model = Bag({f"p{number}": torch.randn(size) for number, size in enumerate(sizes)})
    run = RunFolder(tmp_path, World())
    with run.writing(1) as folder:
        save_model(model, folder, world=World(), config={}, max_shard_bytes=10_000_000)
    run.close()
    step = tmp_path / "step_000001"
    files = json.loads((step / "manifest.json").read_text())["files"]
    assert {path.name for path in step.iterdir()} == {*files, "manifest.json"}
    for name, fields in files.items():
        content = (step / name).read_bytes()
        assert fields == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    loaded = Bag({name: torch.zeros_like(p) for name, p in model.named_parameters()})
    load_model(loaded, step)
    assert_same_weights(loaded, model)
