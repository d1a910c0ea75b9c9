"""`tune chat` as a person and as a pipe uses it: what it says, and what the keys do."""

import os
import select
import shutil
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch
from torchtune.testing import tiny_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

pty = pytest.importorskip("pty")  # not on Windows
MAIN = "torchtune_recipes.cli.main"
QUESTIONS = ["What is two and two?", "Name a river."]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


def command(*words):
    return [sys.executable, "-m", MAIN, "chat", *map(str, words)]


@pytest.fixture
def piped(warm_python, tmp_path):
    """Run ``tune chat WORDS`` in an empty folder, where `text` is what comes through the pipe."""

    def call(text, *words):
        words = ("chat", *map(str, words))
        there = {**os.environ, "OMP_NUM_THREADS": "1"}
        return warm_python.run(MAIN, *words, cwd=tmp_path, env=there, input=text)

    return call


def transformers_answers(folder, questions, system=None):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    turns = [{"role": "system", "content": system}] if system else []
    answers = []
    for question in questions:
        turns.append({"role": "user", "content": question})
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
        ids = ids["input_ids"]
        options = {"do_sample": False, "eos_token_id": [1, 3], "pad_token_id": 0}
        out = model.generate(ids, max_new_tokens=12, **options)
        answers.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
        turns.append({"role": "assistant", "content": answers[-1]})
    return answers


class Terminal:
    """`tune chat` in a terminal of its own; `seen` is what it has shown, `known` how far we read."""

    def __init__(self, *words):
        self.main, other = pty.openpty()
        self.process = subprocess.Popen(
            command(*words), stdin=other, stdout=other, stderr=other, start_new_session=True,
            env={**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # Ctrl-C comes from it
        )  # fmt: skip
        os.close(other)
        self.seen, self.known = "", 0

    def type(self, text):
        os.write(self.main, text.encode())

    def press(self, key, text):
        """Press a key until `text` comes: between two lines readline does not listen to keys yet."""
        for _ in range(30):
            self.type(key)
            with suppress(AssertionError):
                return self.wait_for(text, seconds=2)
        raise AssertionError(self.seen)

    def wait_for(self, text, seconds=300):
        """Read until `text` comes after what was waited for before."""
        end = time.monotonic() + seconds
        while text not in self.seen[self.known :]:
            assert time.monotonic() < end, self.seen
            if select.select([self.main], [], [], 0.1)[0]:
                self.seen += os.read(self.main, 4096).decode(errors="replace")
        self.known = self.seen.index(text, self.known) + len(text)


@pytest.fixture
def terminal():
    opened = []

    def start(*words):
        opened.append(Terminal(*words))
        return opened[-1]

    yield start
    for each in opened:
        each.process.kill()
        each.process.wait()
        os.close(each.main)


def test_answers_to_piped_lines_are_those_of_transformers_and_stand_alone_on_stdout(model, piped):
    words = ("--checkpoint", model, "--temperature", "0", "--max-new-tokens", "12")
    lines = [*QUESTIONS, "/system Be brief.", "/reset", QUESTIONS[1]]
    done = piped("\n".join(lines) + "\n", *words)
    wanted = transformers_answers(model, QUESTIONS)
    wanted += transformers_answers(model, QUESTIONS[1:], system="Be brief.")
    assert (done.returncode, done.stdout) == (0, "".join(f"{answer}\n" for answer in wanted))
    assert "(system message: Be brief.)" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("next: tune evaluate --checkpoint")


def test_a_person_stops_an_answer_and_asks_on(terminal, shared, tmp_path):
    story = shutil.copytree(shared / "models" / "stories260k", tmp_path / "story")
    (story / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[-1].content }}")
    chat = terminal("--checkpoint", story, "--temperature", "0", "--max-new-tokens", "3000")
    chat.wait_for("> ")
    chat.type("Once upon a time\n")
    chat.wait_for("there was")
    chat.type("\x03")
    chat.wait_for("(stopped)")
    chat.wait_for("> ")
    chat.type("/temperature hot\n")
    chat.wait_for("wants a number, not 'hot'")
    chat.type("/nothing\n")
    chat.wait_for("no command /nothing")
    chat.type("/help\n")
    chat.wait_for("/reset")
    chat.wait_for("> ")
    chat.press("\x03", "Ctrl-D or /quit ends the chat")
    chat.wait_for("> ")
    chat.press("\x04", "next: tune evaluate")
    assert chat.process.wait(timeout=300) == 0


def test_a_model_without_a_template_is_sent_to_generate(shared, piped):
    done = piped("hello\n", "--checkpoint", shared / "models" / "stories260k")
    assert (done.returncode, done.stdout) == (3, "")
    assert "E-CHAT-TEMPLATE" in done.stderr and "tune generate --raw" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--port", "80"], 2, "--port is for the web page\n  add --ui"),
        (["--nproc_per_node", "2"], 2, "a chat is held by one process\n  answer many prompts with"),
        (["--temperature", "-1"], 2, "temperature is -1.0"),
        (["--top-k", "few"], 2, "--top-k: invalid int value: 'few'"),
        (["--max-new-tokens", "0"], 2, "--max-new-tokens: is 0"),
        (["--checkpoint", "nowhere"], 3, "nowhere"),
    ],
)
def test_wrong_words_are_refused(words, code, said, model, piped):
    done = piped("", "--checkpoint", model, *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr and done.stderr.count("\n") <= 3


def test_the_page_is_a_plug_ins_and_its_absence_is_explained(model, tmp_path):
    hidden = tmp_path / "site" / "sitecustomize.py"
    hidden.parent.mkdir()
    hidden.write_text("import sys\nsys.modules['gradio'] = None\n")
    path = {**os.environ, "PYTHONPATH": str(hidden.parent)}
    words = command("--checkpoint", model, "--ui")
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=path)
    assert done.returncode == 3
    assert "torchtune-integrations[ui]" in done.stderr


def test_a_stop_text_ends_an_answer_and_quit_the_chat(model, piped):
    words = ("--checkpoint", model, "--temperature", "0", "--max-new-tokens", "12")
    (whole,) = transformers_answers(model, QUESTIONS[:1])
    letter = next(c for c in whole[1:] if c.isascii() and c.isprintable())
    done = piped(QUESTIONS[0] + "\n/quit\nnever read\n", *words, "--stop", letter)
    assert done.stdout == whole[: whole.index(letter)] + "\n"
