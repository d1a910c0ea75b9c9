"""The Llama family against transformers and against a trained model's recorded values."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchtune.data import Documents, flat_batch
from torchtune.errors import ConfigError, MissingError
from torchtune.losses import LinearCrossEntropy
from torchtune.models import auto, from_pretrained
from torchtune.models.llama import HUB_NAMES, SIZES, from_hf_config, llama
from torchtune.testing import tiny_checkpoint

LLAMAS = ("llama2", "llama3", "llama3_1", "llama3_2")


@pytest.mark.parametrize("style", ["hub", "v5"])
@pytest.mark.parametrize("arch", LLAMAS)
def test_logits_are_those_of_transformers(arch, style, random_models, tmp_path):
    random_models.write(arch, tmp_path, style=style)
    expected = random_models.expected(arch)
    model = from_pretrained(tmp_path, dtype=torch.float32)
    logits = model(expected["input_ids"])
    assert logits.shape == expected["logits"].shape
    torch.testing.assert_close(logits, expected["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("arch", LLAMAS)
def test_gradients_are_those_of_transformers(arch, random_models, tmp_path):
    random_models.write(arch, tmp_path)
    ids, reference = random_models.input_ids(), random_models.model(arch)
    logits = reference(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum").backward()
    model = from_pretrained(tmp_path, dtype=torch.float32)
    documents = Documents.of([(row.tolist(), [True] * len(row)) for row in ids])
    model(flat_batch(documents, [0, 1]), loss=LinearCrossEntropy()).backward()
    theirs = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-4, rtol=1e-4)


def test_padding_on_the_left_changes_nothing(random_models, tmp_path):
    random_models.write("llama3_1", tmp_path)
    model = from_pretrained(tmp_path, dtype=torch.float32)
    ids = random_models.input_ids()[:1, :10]
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], 1)
    mask = torch.tensor([[False] * 5 + [True] * 10])
    torch.testing.assert_close(model(padded, mask=mask)[:, 5:], model(ids), atol=1e-5, rtol=0)


def test_a_full_mask_says_who_sees_whom(random_models, tmp_path):
    random_models.write("llama2", tmp_path)
    model = from_pretrained(tmp_path, dtype=torch.float32)
    ids = random_models.input_ids()
    causal = torch.ones(24, 24, dtype=torch.bool).tril().expand(2, 24, 24)
    torch.testing.assert_close(model(ids, mask=causal), model(ids), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def stories(shared):
    model = from_pretrained(shared / "models/stories260k", dtype=torch.float32)
    reference = json.loads((shared / "reference/stories260k.json").read_text())
    return model, reference


def test_a_trained_model_ranks_tokens_as_recorded(stories):
    model, reference = stories
    for prompt in reference["prompts"]:
        last = model(torch.tensor([prompt["ids"]]))[0, -1]
        ids, values = zip(*prompt["top10"], strict=True)
        torch.testing.assert_close(last[list(ids)], torch.tensor(values), atol=1e-4, rtol=0)


def test_a_trained_model_has_the_recorded_loss_and_gradients(stories):
    model, reference = stories
    ids = reference["text"]["ids"]
    loss = LinearCrossEntropy(chunk_tokens=100)

    def total(length):
        documents = Documents.of([(ids[:length], [True] * length)])
        return model(flat_batch(documents, [0]), loss=loss) / (length - 1)

    assert total(512).item() == pytest.approx(reference["nll"]["mean_512"], rel=1e-5)
    mean = total(256)
    mean.backward()
    assert mean.item() == pytest.approx(reference["nll"]["mean_256"], rel=1e-5)
    parameters = dict(model.named_parameters())
    for name, expected in reference["grads"]["named"].items():
        assert parameters[name].grad.norm().item() == pytest.approx(expected["norm"], rel=1e-4)
    model.zero_grad()


@pytest.mark.parametrize("name", sorted(SIZES))
def test_named_builders_have_the_published_sizes(name):
    """Parameter counts as the model cards give them, to their rounding."""
    billions = {
        "llama2_7b": 6.738, "llama2_13b": 13.016, "llama2_70b": 68.977, "llama3_8b": 8.030,
        "llama3_70b": 70.554, "llama3_1_8b": 8.030, "llama3_1_70b": 70.554, "llama3_1_405b": 405.853,
        "llama3_2_1b": 1.236, "llama3_2_3b": 3.213, "llama3_3_70b": 70.554, "code_llama_7b": 6.739,
        "code_llama_13b": 13.016, "code_llama_34b": 33.744, "code_llama_70b": 68.977,
        "smollm2_135m": 0.1345, "smollm2_360m": 0.3618, "smollm2_1_7b": 1.711,
        "tinyllama_1_1b": 1.100,
    }  # fmt: skip
    with torch.device("meta"):
        model = llama(**SIZES[name])
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e9 == pytest.approx(billions[name], rel=5e-4)
    assert "/" in HUB_NAMES[name]


def test_the_config_a_builder_writes_builds_the_same_model():
    sizes = dict(SIZES["llama3_2_1b"], num_layers=2, embed_dim=64, num_heads=4, num_kv_heads=2,
                 head_dim=16, intermediate_dim=96, vocab_size=128)  # fmt: skip
    first = llama(**sizes)
    second = from_hf_config(first.hf_config)
    second.load_state_dict(first.state_dict())
    ids = torch.arange(20).unsqueeze(0)
    assert torch.equal(first(ids), second(ids))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "rwkv"}, "architecture 'rwkv' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"hidden_size": None}, "keys are missing: hidden_size"),
        ({"num_key_value_heads": 3}, "do not divide"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope scaling 'yarn' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "needs ['low_freq_factor'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "needs numbers above 0"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object, found 'linear'"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be a whole number above 0, found -1"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number above 0"),
        ({"vocab_size": "512", "rms_norm_eps": 0}, "found '512'; rms_norm_eps must be a number"),
        ({"quantization_config": {"bits": 4}}, "quantization_config {'bits': 4} is not supported"),
        ({"sliding_window": 128}, "sliding_window 128 is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(change, said, shared, tmp_path):
    config = json.loads((shared / "models/stories260k/config.json").read_text()) | change
    config = {key: value for key, value in config.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError) as caught:
        auto(tmp_path)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"sliding_window": 4096},  # more than the positions
        {"sliding_window": 128, "use_sliding_window": False},
        {"partial_rotary_factor": 1.0, "quantization_config": None, "head_dim": None},
    ],
)
def test_keys_that_change_nothing_are_taken(change, shared, tmp_path):
    config = json.loads((shared / "models/stories260k/config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert auto(tmp_path).hf_config["vocab_size"] == 512


def test_a_checkpoint_is_found_from_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny_checkpoint(tmp_path / "model")
    assert from_pretrained("~/model").hf_config["vocab_size"] == 260


def test_a_runs_folder_names_its_newest_checkpoint(tmp_path):
    (tmp_path / "latest").symlink_to(tiny_checkpoint(tmp_path / "step_000001"))
    with pytest.raises(MissingError, match=r"its newest checkpoint is .*latest"):
        auto(tmp_path)


def test_a_config_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="a JSON object is wanted, found"):
        auto(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(dtype, tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"].to(dtype)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"lm_head\.weight is stored as \w+: quantised weights"):
        from_pretrained(folder)


def test_a_folder_without_config_is_missing(tmp_path):
    with pytest.raises(MissingError, match=r"config\.json"):
        auto(Path(tmp_path))
