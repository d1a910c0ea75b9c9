"""GGUF files read back by transformers' own loader: weights, tokens, template."""

import json
import shutil
import sys
import urllib.request

import numpy as np
import pytest
import torch
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torchtune.data import auto_tokenizer, find_template, llama3_tiktoken
from torchtune.errors import ConfigError, MissingError
from torchtune.testing import tiny_checkpoint
from torchtune_integrations.gguf import command, export_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

gguf = pytest.importorskip("gguf")
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def without_tokenizer(folder, **config):
    tiny_checkpoint(folder, chat_template=None, **SIZES, **config)
    for name in TOKENIZER:
        (folder / name).unlink()
    return folder


@pytest.fixture(scope="module")
def llama2(shared, tmp_path_factory):
    """A random model with the tokenizer of Llama 2."""
    ids = {"vocab_size": 32_000, "bos_token_id": 1, "eos_token_id": 2}
    folder = without_tokenizer(tmp_path_factory.mktemp("llama2"), **ids)
    shutil.copyfile(
        shared / "tokenizers" / "llama2" / "tokenizer.model", folder / "tokenizer.model"
    )
    auto_tokenizer(folder).save(folder)
    return folder


@pytest.fixture(scope="module")
def llama3(shared, tmp_path_factory):
    """A random tied model with the tokenizer, a template and the RoPE of Llama 3.2."""
    ids = {"vocab_size": 128_256, "bos_token_id": 128_000, "eos_token_id": 128_001}
    rope = {"rope_theta": 500_000.0, "rope_scaling": LLAMA3_ROPE, "tie_word_embeddings": True}
    folder = without_tokenizer(tmp_path_factory.mktemp("llama3"), **ids, **rope)
    tokenizer = llama3_tiktoken(shared / "tokenizers" / "llama3" / "tokenizer.model")
    tokenizer.chat_template = find_template("llama3")
    tokenizer.save(folder)
    ends = {"eos_token_id": [128_001, 128_009]}
    (folder / "generation_config.json").write_text(json.dumps(ends))
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A random tied model with a small tokenizer that splits texts as SmolLM's does."""
    words = Tokenizer(models.BPE())
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel
    words.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_(add_prefix_space=False)])
    words.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    options = {"initial_alphabet": bytes_.alphabet(), "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, **options)
    words.train_from_iterator(
        ["the thing that thinks, there and then", "in 2024 and 1999"], trainer
    )
    folder = tmp_path_factory.mktemp("small")
    ids = {"vocab_size": 448, "bos_token_id": 1, "eos_token_id": 2}
    without_tokenizer(folder, tie_word_embeddings=True, **ids)
    words.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    names |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def logits(folder, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    return model(torch.arange(3, 60)[None]).logits


@pytest.mark.parametrize(
    ("kind", "off"), [("f32", 0), ("f16", 2e-3), ("bf16", 2e-2), ("q8_0", 4e-2)]
)
def test_transformers_reads_the_same_model_from_the_file(small, tmp_path, kind, off):
    file = export_gguf(small, tmp_path / "m.gguf", kind=kind)
    found, wanted = logits(tmp_path, gguf_file=file.name), logits(small)
    assert (found - wanted).abs().max() <= off * wanted.abs().max()


def test_llama_cpp_reads_and_continues_texts_as_transformers(small, tmp_path):
    xllamacpp = pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(export_gguf(small, tmp_path / "m.gguf", kind="f32"))
    params.n_ctx, params.n_parallel, params.warmup, params.fit_params = 256, 1, False, False
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)
    words = AutoTokenizer.from_pretrained(small)
    for text in ("then 1234 things", "  the\n\n thing's ", "caf\u00e9 \U0001f680 <|im_end|>"):
        data = json.dumps({"content": text, "parse_special": True}).encode()
        asked = urllib.request.Request(f"{server.listening_address}/tokenize", data)
        with urllib.request.urlopen(asked) as answer:
            assert json.load(answer)["tokens"] == words.encode(text)
    said = server.handle_completions({"prompt": "then", "max_tokens": 16, "temperature": 0})
    model = AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32)
    ids = torch.tensor([words.encode("then")])
    wanted = model.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :]
    assert said["choices"][0]["text"] == words.decode(wanted)


def test_the_tokens_of_llama_2_are_sentencepiece_s_own(llama2, tmp_path):
    fields = gguf.GGUFReader(export_gguf(llama2, tmp_path / "m.gguf")).fields
    model = SentencePieceProcessor(model_file=str(llama2 / "tokenizer.model"))
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens == [model.id_to_piece(number) for number in range(32_000)]
    scores = fields["tokenizer.ggml.scores"].contents()
    assert scores == [model.get_score(number) for number in range(32_000)]
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert kinds[:4] == [2, 3, 3, 6] and kinds.count(6) == 256 and kinds.count(1) == 31_741
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert fields["tokenizer.ggml.add_space_prefix"].contents() is True


@pytest.mark.slow  # the reader takes its time with 128,256 tokens and 280,147 merges
def test_llama_3_keeps_its_tokens_template_and_stretched_rope(llama3, tmp_path):
    reader = gguf.GGUFReader(export_gguf(llama3, tmp_path / "m.gguf", kind="q8_0"))
    fields = {
        name: field.contents() for name, field in reader.fields.items() if "merges" not in name
    }
    words = AutoTokenizer.from_pretrained(llama3)
    assert fields["tokenizer.ggml.tokens"] == words.convert_ids_to_tokens(list(range(128_256)))
    assert fields["tokenizer.ggml.token_type"].count(3) == 256
    assert fields["tokenizer.ggml.pre"] == "llama-bpe"
    assert fields["tokenizer.ggml.eot_token_id"] == words.convert_tokens_to_ids("<|eot_id|>")
    assert fields["tokenizer.chat_template"] == words.chat_template
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert "output.weight" not in tensors  # tied
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig.from_pretrained(llama3), "cpu")
    plain = 1 / 500_000 ** (torch.arange(0, 16, 2).float() / 16)
    np.testing.assert_allclose(tensors["rope_freqs.weight"].data, plain / stretched, rtol=1e-5)


def test_the_command_prints_the_file_and_what_is_next(small, tmp_path, capsys):
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    out = str(tmp_path / "deep" / "m.gguf")
    assert command.run(parser.parse_args(["--gguf", str(small), out])) == 0
    assert capsys.readouterr() == (f"{out}\n", f"next: llama-cli -m {out}\n")
    with pytest.raises(ConfigError, match="exists already"):
        command.run(parser.parse_args(["--gguf", str(small), out]))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["m.gguf"]


def test_what_cannot_be_exported_is_refused_by_name(tmp_path, shared, monkeypatch):
    model, out = tiny_checkpoint(tmp_path / "m"), tmp_path / "m.gguf"
    said = json.loads((model / "tokenizer.json").read_text())
    said["pre_tokenizer"] = {"type": "Whitespace"}
    (model / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(ConfigError, match="does not know the way"):
        export_gguf(model, out)
    with pytest.raises(ConfigError, match="does not know the way"):  # it folds spaces
        export_gguf(shared / "models" / "stories260k", out)
    other = tiny_checkpoint(tmp_path / "o", model_type="made_up")
    with pytest.raises(ConfigError, match="'made_up' cannot be exported"):
        export_gguf(other, out)
    adapter = tmp_path / "a"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(model)})
    )
    with pytest.raises(ConfigError, match="tune merge BASE ADAPTER OUT"):
        export_gguf(adapter, out)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingError, match=r"torchtune-integrations\[gguf\]"):
        export_gguf(model, out)
    assert not list(tmp_path.glob("*.gguf*"))
