"""Text by pieces and stop strings, against the tokenizers' own text of all tokens."""

import random

import pytest
import torch
from torchtune.data import auto_tokenizer
from torchtune.errors import ConfigError
from torchtune.generation import (
    LoadedCheckpoint,
    Sampling,
    TextStream,
    generate,
    generate_text,
    stream_text,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = "  Once — naïve 🎉🎊 日本語\n\n\tspaces   and 👩‍👩‍👧‍👦 <s> ▁ e\u0301 \ufffd 1234567 "


@pytest.fixture
def story(stories, load):
    return LoadedCheckpoint(load(stories), auto_tokenizer(stories), None, stories, stories)


@pytest.mark.parametrize("folder", ["llama2", "llama3", "stories260k"])
def test_pieces_are_whole_characters_and_together_the_tokenizers_text(folder, shared):
    places = {"stories260k": shared / "models" / folder}
    tokenizer = auto_tokenizer(places.get(folder, shared / "tokenizers" / folder))
    special = list(tokenizer.special_tokens.values())[:3]
    rng = random.Random(0)
    for start in range(20):
        again = tokenizer.encode(" again")
        ids = [*tokenizer.encode(TEXT)[start:], rng.choice(special), *again]
        text = TextStream(tokenizer)
        pieces = [text.add(token) for token in ids]
        rest = text.finish()
        assert "".join(pieces) + rest == tokenizer.decode(ids)
        assert not any(piece.endswith("\ufffd") for piece in pieces)
        assert len([piece for piece in pieces if piece]) > len(ids) / 4  # not all at the end


@pytest.mark.parametrize(
    ("text", "stop", "wanted"),
    [
        ("one two. three", ["."], "one two"),
        ("one two\n\nthree", ["\n\n"], "one two"),
        ("one two three", ["two th"], "one "),
        ("one two three", ["two thx", "three"], "one two "),
        ("one two three", ["threefold"], "one two three"),
        ("one two three", ["wo", "two"], "one "),
        ("aab aaab", ["aaa"], "aab "),
        ("yes 🎉 no", ["🎉"], "yes "),
    ],
)
def test_an_answer_is_cut_before_the_first_stop_string(text, stop, wanted, stories):
    tokenizer = auto_tokenizer(stories)
    stream, pieces = TextStream(tokenizer, stop), []
    for token in tokenizer.encode(text):
        pieces.append(stream.add(token))
        assert wanted.startswith("".join(pieces))  # nothing has to be taken back
    assert "".join(pieces) + stream.finish() == wanted
    assert stream.ended == (wanted != text)


def test_rows_end_apart_at_the_strings_where_transformers_ends(stories, story):
    texts = ["Once upon a time", "Lily had", "The big dog was"]
    tokenizer = AutoTokenizer.from_pretrained(stories)
    model = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32)
    prompts = [story.prompt_ids(text) for text in texts]
    stop, wanted = [". She", ", red ball", "loved to play"], []
    for prompt in prompts:
        options = {"do_sample": False, "max_new_tokens": 40, "pad_token_id": 0}
        stopped = model.generate(
            torch.tensor([prompt]), stop_strings=stop, tokenizer=tokenizer, **options
        )
        ids = stopped[0, len(prompt) :].tolist()
        whole = tokenizer.decode(ids)
        wanted.append((whole[: min([whole.index(s) for s in stop if s in whole])], ids))
    answers = generate_text(story.model, story.tokenizer, prompts, max_new_tokens=40, stop=stop)
    assert [(a.text, a.tokens) for a in answers] == wanted
    assert len({len(a.tokens) for a in answers}) > 1
    streamed = [stream_text(story, p, max_new_tokens=40, stop=stop) for p in prompts]
    assert ["".join(pieces) for pieces in streamed] == [text for text, _ in wanted]


def test_streamed_text_is_that_of_the_tokens_and_comes_as_it_is_made(story):
    prompt = story.prompt_ids("Once upon a time")
    sampling = Sampling(temperature=0.9, seed=3)
    ids = generate(story.model, [prompt], max_new_tokens=30, sampling=sampling)[0]
    pieces = list(stream_text(story, prompt, max_new_tokens=30, sampling=sampling))
    assert "".join(pieces) == story.tokenizer.decode(ids)
    assert len(pieces) > 20 and all(pieces)
    first = stream_text(story, prompt, max_new_tokens=30, sampling=sampling)
    assert next(first) == pieces[0]


def test_the_model_is_as_before_when_a_reader_leaves_early(story):
    story.model.train()
    pieces = stream_text(story, [1, 403], max_new_tokens=30)
    next(pieces)
    assert not story.model.training
    pieces.close()
    assert story.model.training


def test_an_empty_stop_string_and_a_bad_prompt_are_refused_before_the_first_piece(story):
    with pytest.raises(ConfigError, match="E-STOP"):
        stream_text(story, [1], stop=["x", ""])
    with pytest.raises(ConfigError, match="E-PROMPT"):
        stream_text(story, [])
    with pytest.raises(ConfigError, match="E-STOP"):
        generate_text(story.model, story.tokenizer, [[1]], stop=[""])
