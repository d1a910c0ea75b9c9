"""The quickstart: its data are ours and made anew, and it proves what it says."""

import json
import re
import subprocess
import sys

import pytest
from torchtune_recipes.quickstart import data

FILES = ("sentences.jsonl", "instructions.jsonl", "questions.jsonl")
START = [sys.executable, "-m", "torchtune_recipes.quickstart"]


def rows(name):
    lines = (data.FOLDER / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_shipped_rows_are_those_that_the_script_makes(tmp_path):
    data.write(tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (data.FOLDER / name).read_bytes()


def test_no_question_is_about_a_country_that_the_instructions_name():
    words = set(re.findall(r"\w+", " ".join(row["instruction"] for row in rows(FILES[1]))))
    said = {row["text"] for row in rows("sentences.jsonl")}
    questions = rows("questions.jsonl")
    assert len(questions) == 50
    for question in questions[::2]:
        (sentence,) = {s for s in said if s.endswith(f" has the capital {question['output']}.")}
        assert sentence.partition(" has the")[0] not in words


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    done = subprocess.run([*START, "--output-dir", str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error[E-FOLDER-FOREIGN]")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_the_tuned_model_answers_and_a_second_run_gives_the_same(tmp_path):
    ends = []
    for _ in range(2):
        done = subprocess.run(START, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        ends.append(json.loads(done.stdout.splitlines()[-1]))
    assert list(ends[0]) == ["base", "tuned", "first_step_s", "adapter_sha256"]
    assert ends[0]["base"] <= 0.1 and ends[0]["tuned"] >= 0.9
    assert ends[0]["adapter_sha256"] == ends[1]["adapter_sha256"]
    assert (tmp_path / "output/quickstart/lora/loss.png").is_file()
