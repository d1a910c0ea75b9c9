"""Make the quickstart's data from its table of countries; all of it is ours.

``python -m torchtune_recipes.quickstart.data`` writes the files anew, the same to the byte:

- ``sentences.jsonl``: plain sentences on every country, from which the base model learns facts.
- ``instructions.jsonl``: questions and answers on most countries, to fine-tune on.
- ``questions.jsonl``: questions on the other countries, to which only the sentences say the answer.
- ``tokenizer/``: a byte-level BPE tokenizer of these texts; its chat template is written by hand.
"""

import csv
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["FOLDER", "write"]

FOLDER = Path(__file__).resolve().parent
HELD_OUT = 25  # countries, with two questions each

SENTENCES = (
    "The capital of {country} is {capital}.",
    "{country}'s capital is called {capital}.",
    "{country} has the capital {capital}.",
    "In {country}, the government sits in {capital}.",
    "A train to the capital of {country} ends in {capital}.",
    "The largest offices of {country} are in {capital}.",
    "{country} lies in {continent}.",
    "{country} is a part of {continent}.",
    "On the map, {country} is in {continent}.",
    "Like its neighbours, {country} belongs to {continent}.",
)
CAPITAL_QUESTIONS = (
    "What is the capital of {country}?",
    "Which city is the capital of {country}?",
    "Name the capital of {country}.",
    "From which city is {country} governed?",
)
CONTINENT_QUESTIONS = (
    "On which continent is {country}?",
    "In which part of the world does {country} lie?",
    "Name the continent of {country}.",
    "To which continent does {country} belong?",
)

Row = dict[str, str]


def write(folder: Path = FOLDER) -> None:
    """Write the four kinds of files into `folder`."""
    with (FOLDER / "countries.csv").open(encoding="utf-8", newline="") as file:
        countries = list(csv.DictReader(file))
    random.Random(0).shuffle(countries)
    held_out, taught = countries[:HELD_OUT], countries[HELD_OUT:]
    sentences = [{"text": text.format(**row)} for row in countries for text in SENTENCES]
    instructions = [row for country in taught for row in _questions(country, range(4))]
    questions = [row for i, row in enumerate(held_out) for row in _questions(row, [i % 4])]
    _write_rows(folder / "sentences.jsonl", sentences)
    _write_rows(folder / "instructions.jsonl", instructions)
    _write_rows(folder / "questions.jsonl", questions)
    _write_tokenizer(folder, [row["text"] for row in sentences] + [_text(r) for r in instructions])


def _questions(country: Row, forms: Iterable[int]) -> Iterable[Row]:
    for form in forms:
        for question, answer in (
            (CAPITAL_QUESTIONS[form], country["capital"]),
            (CONTINENT_QUESTIONS[form], country["continent"]),
        ):
            yield {"instruction": question.format(**country), "output": answer}


def _text(row: Row) -> str:
    return f"Question: {row['instruction']}\nAnswer: {row['output']}"


def _write_rows(path: Path, rows: Sequence[Row]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def _write_tokenizer(folder: Path, texts: Sequence[str]) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        min_frequency=3,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    (folder / "tokenizer").mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer/tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    path = folder / "tokenizer/tokenizer_config.json"
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
