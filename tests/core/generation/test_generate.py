"""Generated tokens against transformers' and the recorded ones of a trained model."""

import json

import pytest
import torch
from torchtune.errors import ConfigError, Faults, TuneError
from torchtune.generation import (
    KVCache,
    Sampling,
    compile_decoding,
    generate,
    pack_linears,
    stream,
)
from torchtune.peft import adapters, lora
from transformers import AutoModelForCausalLM

PROMPTS = [[5, 9, 200, 31], [7], [300, 2, 45, 6, 77, 8, 120], [11, 12]]


def transformers_generate(folder, prompts, dtype=torch.float32, **options):
    """Return the new tokens of transformers' generate on left-padded prompts."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, **options}
    out = model.generate(tokens, attention_mask=mask, **options)
    return out[:, width:].tolist()


def test_greedy_tokens_of_a_trained_model_are_the_recorded_ones(shared, stories, load):
    reference = json.loads((shared / "reference" / "stories260k.json").read_text())["prompts"]
    model = load(stories)
    wanted = [prompt["greedy"] for prompt in reference]
    prompts = [prompt["ids"] for prompt in reference]
    assert [generate(model, [p], max_new_tokens=32)[0] for p in prompts] == wanted
    assert generate(model, prompts, max_new_tokens=32) == wanted


@pytest.mark.parametrize("architecture", ["llama2", "llama3", "llama3_1", "llama3_2"])
def test_greedy_tokens_of_a_padded_batch_are_those_of_transformers(
    architecture, random_models, load, tmp_path
):
    random_models.write(architecture, tmp_path)
    wanted = transformers_generate(tmp_path, PROMPTS, max_new_tokens=20)
    assert generate(load(tmp_path), PROMPTS, max_new_tokens=20) == wanted


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 20},
        {"top_p": 0.8},
        {"top_k": 9, "top_p": 0.6},
        {"min_p": 0.1, "temperature": 2.0},
    ],
)
def test_drawn_tokens_are_those_of_transformers_with_the_same_seed(options, stories, load):
    options = {"temperature": 1.0, **options}
    model = load(stories)
    torch.manual_seed(11)
    everything = {"top_k": 0, "top_p": 1.0, **options}
    wanted = transformers_generate(
        stories, PROMPTS, max_new_tokens=20, do_sample=True, **everything
    )
    state = torch.get_rng_state()
    sampling = Sampling(seed=11, **options)
    assert generate(model, PROMPTS, max_new_tokens=20, sampling=sampling) == wanted
    assert torch.equal(torch.get_rng_state(), state)  # torch's own generator is left alone


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_the_repetition_penalty_is_that_of_transformers_and_padding_is_not_repeated(
    temperature, stories, load
):
    model, prompts = load(stories), [[1, 403, 407, 261], [0, 5, 9, 9]]
    sampling = Sampling(temperature=temperature, repetition_penalty=1.6, seed=4)
    torch.manual_seed(4)
    drawing = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}
    wanted = transformers_generate(
        stories, prompts, max_new_tokens=20, repetition_penalty=1.6, **drawing
    )
    assert wanted != generate(model, prompts, max_new_tokens=20)
    assert generate(model, prompts, max_new_tokens=20, sampling=sampling) == wanted
    if not temperature:  # without draws a row is the same alone
        padded = [prompts[0], [7]]
        alone = [generate(model, [p], max_new_tokens=20, sampling=sampling)[0] for p in padded]
        assert generate(model, padded, max_new_tokens=20, sampling=sampling) == alone


def test_a_row_ends_before_its_stop_token_and_others_go_on(stories, load):
    model, prompts = load(stories), [[1, 403, 407], [1, 410, 392, 261]]
    free = generate(model, prompts, max_new_tokens=12)
    stop = free[0][4]
    wanted = [row[: row.index(stop)] if stop in row else row for row in free]
    assert wanted[0] != free[0]
    assert generate(model, prompts, max_new_tokens=12, stop_tokens={stop}) == wanted
    steps = list(stream(model, prompts, max_new_tokens=12, stop_tokens=[stop]))
    assert [[t for t in row if t is not None] for row in zip(*steps, strict=True)] == wanted


def test_long_prompts_go_in_by_parts_and_end_with_the_models_positions(
    random_models, load, tmp_path
):
    random_models.write("llama3", tmp_path)
    model = load(tmp_path)
    model.max_positions = 1300
    generator = torch.Generator().manual_seed(0)
    long = torch.randint(512, (1290,), generator=generator).tolist()
    prompts = [long, long[:700]]
    wanted = transformers_generate(tmp_path, prompts, max_new_tokens=10)
    assert generate(model, prompts, max_new_tokens=50) == wanted


def test_packed_layers_give_the_same_tokens_in_bf16_and_change_nothing_in_fp32(stories, load):
    prompts = [[1, 403, 407], [1, 410, 392, 261]]
    wanted = generate(load(stories, dtype=torch.bfloat16), prompts, max_new_tokens=20)
    packed = pack_linears(load(stories, dtype=torch.bfloat16))
    assert generate(packed, prompts, max_new_tokens=20) == wanted
    model = load(stories)
    keys = set(model.state_dict())
    assert set(pack_linears(model).state_dict()) == keys


def test_a_packed_adapter_gives_the_same_tokens_head_included(random_models, load, tmp_path):
    random_models.write("llama3", tmp_path)  # its head is no embedding
    targets = ("q_proj", "down_proj", "lm_head")

    def adapted():
        model = lora(load(tmp_path, dtype=torch.bfloat16), rank=4, targets=targets)
        for layer in adapters(model).values():
            torch.nn.init.normal_(layer.lora_b, std=0.1, generator=torch.Generator().manual_seed(1))
        return model.requires_grad_(False)

    wanted = generate(adapted(), PROMPTS, max_new_tokens=20)
    assert wanted != generate(load(tmp_path, dtype=torch.bfloat16), PROMPTS, max_new_tokens=20)
    packed = pack_linears(adapted())
    assert generate(packed, PROMPTS, max_new_tokens=20) == wanted
    assert not any("lora" in name for name, _ in packed.named_parameters())


@pytest.mark.slow  # torch.compile takes a minute
def test_compiled_decoding_gives_the_same_tokens_padded_and_with_an_adapter(stories, load):
    model = lora(load(stories), rank=4)
    for layer in adapters(model).values():
        torch.nn.init.normal_(layer.lora_b, std=0.1, generator=torch.Generator().manual_seed(1))
    model.requires_grad_(False)
    wanted = generate(model, PROMPTS, max_new_tokens=40)
    compiled = compile_decoding(model)
    assert generate(compiled, PROMPTS, max_new_tokens=40) == wanted
    assert generate(compiled, PROMPTS, max_new_tokens=40) == wanted  # nothing is left of the first


def test_the_cache_of_fixed_shape_gives_the_same_logits(stories, load):
    model = load(stories)
    tokens = torch.randint(512, (2, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, :3] = False
    whole = model(tokens, mask=mask)
    cache = KVCache.of(model, batch=2, capacity=32)
    model(tokens[:, :5], mask=mask[:, :5], cache=cache)
    fixed = cache.fixed()
    for place in range(5, 9):
        logits = model(tokens[:, place, None], cache=fixed)
        fixed.advance()
        torch.testing.assert_close(logits[:, 0], whole[:, place], rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, seed=0)])
def test_weights_that_are_nan_give_no_answer(sampling, stories, load):
    model = load(stories)
    with torch.no_grad():
        model.model.norm.weight[3] = torch.nan
    with pytest.raises(TuneError, match="E-NOT-FINITE"):
        generate(model, [[1, 2]], max_new_tokens=2, sampling=sampling)


def test_dropout_is_off_while_generating_and_back_afterwards(stories, load):
    model = load(stories).train()
    model.model.norm.register_forward_hook(lambda norm, args, out: seen.append(norm.training))
    seen: list[bool] = []
    generate(model, [[1]], max_new_tokens=2)
    assert seen == [False, False]
    assert model.training and all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "prompts is 0"),
        ([[1], []], {}, "no tokens\n  at prompt 1"),
        ([[1] * 512], {}, "512 tokens; the model's 512 positions are full"),
        ([[1, 512]], {}, "token 512 is not among the model's 512"),
        ([[1, -1]], {}, "token -1"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_what_cannot_be_generated_is_refused_before_the_first_token(
    prompts, options, message, stories, load
):
    with pytest.raises(ConfigError, match=message):
        stream(load(stories), prompts, **options)
    with pytest.raises(Faults, match=r"prompt 0(.|\n)*max_new_tokens"):
        stream(load(stories), [[]], max_new_tokens=0)
