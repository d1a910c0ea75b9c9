"""The generate recipe against transformers and PEFT on the same folders."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import peft
import pytest
import torch
import torchtune_recipes
from torchtune.checkpoint import merge_adapter
from torchtune.errors import ConfigError, DataError, Faults, MissingError
from torchtune.testing import tiny_checkpoint, tiny_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTIONS = ["What is two and two?", "Name a river, then a town."]


def recipe(name):
    """Load a recipe's file as a copy of it would be."""
    path = Path(torchtune_recipes.__file__).parent / "recipes" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_recipe", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def answers(capsys):
    """Run the recipe; return what it prints on stdout, one answer a prompt."""
    module = recipe("generate")

    def run(**params):
        capsys.readouterr()
        params = {
            "checkpoint": "",
            "prompt": QUESTIONS,
            "max_new_tokens": 16,
            "json": True,
            **params,
        }
        made = module.GenerateRecipe(module.GenerateParams(**params))
        made.setup()
        made.generate()
        made.cleanup()
        return [json.loads(line)["answer"] for line in capsys.readouterr().out.splitlines()]

    return run


def transformers_answers(folder, adapter=None, questions=QUESTIONS, **options):
    tokenizer = AutoTokenizer.from_pretrained(adapter or folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, adapter) if adapter else model
    texts = []
    options = {"do_sample": False, "eos_token_id": [1, 3], "pad_token_id": 0, **options}
    for question in questions:
        chat = [{"role": "user", "content": question}] if isinstance(question, str) else question
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
        ids = ids["input_ids"]
        out = model.generate(input_ids=ids, max_new_tokens=16, tokenizer=tokenizer, **options)
        texts.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """The output folder of a short LoRA run."""
    folder = tmp_path_factory.mktemp("run")
    sft = recipe("sft")
    params = sft.SFTParams(
        checkpoint=str(base), dataset={"_component_": "rows", "source": str(tiny_rows(folder, 16))},
        model={"_component_": "auto"}, tokenizer={"_component_": "auto"},
        peft={"_component_": "lora", "rank": 4}, optimizer={"_component_": "adamw", "lr": 0.05},
        loss={"_component_": "linear_cross_entropy"}, dtype="fp32", device="cpu", max_steps=2,
        output_dir=str(folder / "out"),
    )  # fmt: skip
    made = sft.SFTRecipe(params)
    made.setup()
    made.train()
    made.cleanup()
    return folder / "out"


def test_answers_of_a_whole_checkpoint_are_those_of_transformers(base, answers):
    assert answers(checkpoint=str(base)) == transformers_answers(base)


def test_answers_of_a_lora_run_are_those_of_peft(base, run, answers):
    wanted = transformers_answers(base, run / "step_000002")
    assert wanted != transformers_answers(base)
    assert answers(checkpoint=str(run)) == wanted
    assert answers(checkpoint=str(run / "latest")) == wanted
    assert answers(checkpoint=str(run / "step_000002")) == wanted


def test_a_moved_base_is_named_and_another_one_refused(base, run, answers, tmp_path):
    adapter = shutil.copytree(run / "step_000002", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "gone")
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(MissingError, match=r"E-BASE.*gone(.|\n)*--base DIR"):
        answers(checkpoint=str(adapter))
    assert answers(checkpoint=str(adapter), base=str(base)) == answers(checkpoint=str(run))
    other = tiny_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match=r"E-BASE.*other weights"):
        answers(checkpoint=str(adapter), base=str(other))


@pytest.mark.parametrize(("key", "is_another"), [("rope_theta", True), ("eos_token_id", False)])
def test_an_edited_config_of_the_base_is_noticed_before_answering_and_merging(
    key, is_another, base, run, answers, tmp_path
):
    edited = shutil.copytree(base, tmp_path / "base")
    config = json.loads((edited / "config.json").read_text())
    (edited / "config.json").write_text(json.dumps({**config, key: 7}))
    if not is_another:
        answers(checkpoint=str(run), base=str(edited))
        return
    with pytest.raises(ConfigError, match=r"E-BASE.*config.json' is not the one"):
        answers(checkpoint=str(run), base=str(edited))
    with pytest.raises(ConfigError, match=r"E-BASE.*config.json' is not the one"):
        merge_adapter(edited, run, tmp_path / "merged")


def test_text_without_a_template_is_continued(shared, answers):
    reference = json.loads((shared / "reference" / "stories260k.json").read_text())["prompts"]
    folder = shared / "models" / "stories260k"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wanted = [tokenizer.decode(prompt["greedy"][:16]) for prompt in reference]
    texts = [prompt["text"] for prompt in reference]
    assert answers(checkpoint=str(folder), prompt=texts, batch_size=2) == wanted


def test_draws_follow_the_seed_and_prompts_come_from_a_file(base, answers, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(QUESTIONS) + "\n")
    options = {"checkpoint": str(base), "temperature": 1.5, "prompt": None, "prompts": str(file)}
    first = answers(seed=1, **options)
    assert len(first) == 2
    assert first == answers(seed=1, **options) != answers(seed=2, **options)


def test_prompts_of_a_file_are_answered_as_transformers_answers_its_conversations(
    base, answers, tmp_path
):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTIONS[0]},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": QUESTIONS[1]},
    ]
    said = {"role": "assistant", "content": "The answer, which is not to be seen."}
    rows = [
        {"prompt": QUESTIONS[0]},
        {"messages": turns},
        {"messages": [*turns, said]},
        {"prompt": turns},
        {"instruction": QUESTIONS[1], "output": "Not this."},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    user = [[{"role": "user", "content": question}] for question in QUESTIONS]
    chats = [user[0], turns, turns, turns, user[1]]
    found = answers(checkpoint=str(base), prompt=None, prompts=str(file), batch_size=3)
    assert found == transformers_answers(base, questions=chats)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"prompt": "a"}\n{"question": 1}', 2),
        ("{", 1),
        ('{"messages": []}', 1),
        ('{"text": 3}', 1),
    ],
)
def test_a_row_without_a_prompt_is_named_by_its_line(text, line, base, answers, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    with pytest.raises(DataError) as error:
        answers(checkpoint=str(base), prompt=None, prompts=str(file))
    assert error.value.where == f"{file}:{line}"
    assert "output" not in error.value.what  # a column of ours
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(DataError, match="no prompt"):
        answers(checkpoint=str(base), prompt=None, prompts=str(tmp_path / "empty.txt"))


def test_prompts_that_cannot_be_answered_are_named_by_their_lines_before_any_is(
    base, answers, tmp_path, capsys
):
    file = tmp_path / "prompts.jsonl"
    texts = ["hi", "hi", "hi " * 600, "hi", "hi " * 700]
    file.write_text("\n".join(json.dumps({"prompt": text}) for text in texts))
    with pytest.raises(Faults) as error:
        answers(checkpoint=str(base), prompt=None, prompts=str(file), batch_size=2)
    assert [fault.where for fault in error.value.faults] == [f"{file}:3", f"{file}:5"]
    assert capsys.readouterr().out == ""
    with pytest.raises(ConfigError) as error:
        answers(checkpoint=str(base), prompt=["hi", "hi " * 600])
    assert error.value.where == "prompt[1]"


def test_a_name_stands_for_what_was_downloaded(base, answers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(base, "models/Tiny-1B")
    source = {"repo": "someone/Tiny-1B", "revision": "0" * 40}
    (Path(folder) / "hub_source.json").write_text(json.dumps(source))
    wanted = transformers_answers(base)
    for name in ("Tiny-1B", "someone/Tiny-1B", "./models/Tiny-1B"):
        assert answers(checkpoint=None, model=name) == wanted
    for name in ("someone/Other-1B", "another/Tiny-1B"):
        with pytest.raises(MissingError, match=name):
            answers(checkpoint=None, model=name)


def test_penalty_and_stop_text_are_those_of_transformers(base, answers):
    params = {"checkpoint": str(base), "repetition_penalty": 1.7}
    whole = transformers_answers(base, repetition_penalty=1.7)
    assert answers(**params) == whole != transformers_answers(base)
    letter = next(c for c in whole[0] if c.isascii() and c.isalpha() and c not in whole[1])
    stopped = transformers_answers(base, repetition_penalty=1.7, stop_strings=[letter, "never"])
    assert stopped[0].endswith(letter)
    wanted = [stopped[0].removesuffix(letter), whole[1]]
    assert answers(**params, stop=[letter, "never"]) == wanted


@pytest.mark.parametrize(
    ("params", "where"),
    [
        ({"prompt": None}, "prompt"),
        ({"checkpoint": None}, "checkpoint"),
        ({"model": "too"}, "checkpoint"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stream": True}, "stream"),
        ({"prompts": "also.txt"}, "prompt"),
        ({"top_p": 1.5}, "top_p"),
        ({"raw": True, "system": "Be brief."}, "system"),
        ({"base": "."}, "base"),
    ],
)
def test_wrong_arguments_are_refused_with_their_key(params, where, base, answers):
    with pytest.raises(ConfigError) as error:
        answers(**{"checkpoint": str(base), **params})
    assert error.value.where == where


@pytest.mark.parametrize(
    "params", [{"checkpoint": "nowhere"}, {"prompt": None, "prompts": "no.txt"}]
)
def test_what_is_missing_is_said_to_be(params, base, answers):
    with pytest.raises(MissingError, match=r"nowhere|no\.txt"):
        answers(**{"checkpoint": str(base), **params})


def test_the_command_prints_the_answer_alone(tune, base):
    done = tune(
        "generate", "--checkpoint", str(base), "--prompt", QUESTIONS[0], "max_new_tokens=16"
    )
    assert (done.returncode, done.stdout) == (0, transformers_answers(base)[0] + "\n")
    assert done.stderr.splitlines()[-1] == f"next: tune chat --checkpoint {base}"
    failed = tune("generate", "--checkpoint", "nowhere", "--prompt", "x")
    assert (failed.returncode, failed.stdout) == (3, "")
    assert failed.stderr.startswith("error[E-") and failed.stderr.count("\n") <= 3


def test_a_streamed_answer_is_the_same_text(tune, base):
    words = ("generate", "--checkpoint", str(base), "--prompt", QUESTIONS[0], "max_new_tokens=16")
    streamed, whole = tune(*words, "--stream"), tune(*words)
    assert (whole.returncode, streamed.stdout) == (0, whole.stdout), whole.stderr
