"""The chat page in a real browser, against a server of its own."""

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from torchtune.errors import ConfigError, MissingError
from torchtune.generation import load_checkpoint
from torchtune.testing import tiny_checkpoint

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUESTION = "Once upon a time there was a little dog named Tim."
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}\n{% endfor %}"
LAST = "chat => [...chat.querySelectorAll('[data-testid=bot]')].at(-1)?.innerText ?? ''"
WATCH = f"""() => {{
    const note = (chat, side) => window.seen[side].push(({LAST})(chat));
    window.seen = [[], []];
    new MutationObserver(() => document.querySelectorAll(".chat").forEach(note))
        .observe(document.body, {{childList: true, subtree: true, characterData: true}});
}}"""
WAIT_SECONDS = 120  # for what comes at once where no other program computes
SECONDS_TO_STOP = 5.0  # of computing, where a whole answer takes several times as many
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HTTP_PROXY": "http://127.0.0.1:9"}  # no one is there
SERVER = """
import sys
def heard(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple) and args[1][0] != "127.0.0.1":
        print("connects to", args[1], file=sys.stderr, flush=True)
sys.addaudithook(heard)
from torchtune.errors import report_errors
from torchtune.generation import load_checkpoint
from torchtune_integrations.chat_ui import serve
tuned, base = map(load_checkpoint, sys.argv[1:])
with report_errors():
    serve(tuned, compare=base, port=0, max_new_tokens=1000)
"""


class Models(NamedTuple):
    """Two small models that write stories, as they are and slowed down."""

    tuned: Path
    base: Path
    slow_tuned: Path
    slow_base: Path


def story_model(shared, folder, *, layers=0, change=0.0):
    """Copy stories260k, with weights changed a little and `layers` in addition that do nothing."""
    import torch
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    source = shared / "models" / "stories260k"
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(source / name, folder)
    weights = load_file(source / "model.safetensors")
    noise = torch.Generator().manual_seed(0)
    for name in [name for name in weights if name.endswith("down_proj.weight")]:
        weights[name] *= 1 + change * torch.randn(weights[name].shape, generator=noise)
    config = json.loads((source / "config.json").read_text())
    first = {n: w for n, w in weights.items() if n.startswith("model.layers.0.")}
    for layer in range(config["num_hidden_layers"], config["num_hidden_layers"] + layers):
        for name, weight in first.items():
            silent = "o_proj" in name or "down_proj" in name
            new = name.replace("layers.0.", f"layers.{layer}.")
            weights[new] = torch.zeros_like(weight) if silent else weight.clone()
    config["num_hidden_layers"] += layers
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def models(shared, tmp_path_factory) -> Models:
    """The tuned ones alone have a chat template."""
    root = tmp_path_factory.mktemp("models")
    kinds = {"tuned": dict(change=0.1), "base": {}}
    plain = {name: story_model(shared, root / name, **kind) for name, kind in kinds.items()}
    slow = {
        f"slow_{name}": story_model(shared, root / f"slow-{name}", layers=100, **kind)
        for name, kind in kinds.items()
    }
    for folder in (plain["tuned"], slow["slow_tuned"]):
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    return Models(**plain, **slow)


class Server:
    """The page's server as a process; `said` is what it printed on stderr so far."""

    def __init__(self, *folders: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, *map(str, folders)],
            stderr=subprocess.PIPE, text=True, env={**os.environ, **ENVIRONMENT},
        )  # fmt: skip
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.said += line

    def address(self) -> str:
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", self.said)):
            assert self.process.poll() is None, self.said
            time.sleep(0.05)
        return found[0]

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rest(self) -> float:
        """Wait until a second passes in which it computes nothing; return what it computed before."""
        began, end = self.cpu_seconds(), time.monotonic() + WAIT_SECONDS
        spent = math.inf
        while spent > 0.3:
            assert time.monotonic() < end
            before = self.cpu_seconds()
            time.sleep(1)
            spent = self.cpu_seconds() - before
        return before - began

    def end(self) -> int:
        code = self.process.wait(timeout=WAIT_SECONDS)
        self._reader.join()
        return code


@pytest.fixture(scope="module")
def server(models):
    pytest.importorskip("gradio")
    server = Server(models.slow_tuned, models.slow_base)
    yield server
    server.process.kill()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("needs a Chromium on the PATH (Debian: apt install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Chat:
    """The page in a tab, as its user sees it."""

    def __init__(self, page) -> None:
        self.page, self.box = page, page.get_by_placeholder("Ask something")

    def send(self, text: str) -> None:
        self.box.fill(text)
        self.box.press("Enter")

    def ask(self, text: str) -> None:
        """Send, and wait until it is taken: then the stop button has the other's place."""
        self.send(text)
        self.page.wait_for_function("document.querySelector('[data-testid=textbox]').value == ''")

    def wait(self) -> list[str]:
        """Return the last answers of base and tuned when they are whole."""
        self.page.locator(".submit-button").wait_for()
        return self.answers()

    def answers(self) -> list[str]:
        texts = self.page.locator(".chat").evaluate_all(f"chats => chats.map({LAST})")
        return [words(text) for text in texts]

    def pictures(self) -> list[list[str]]:
        """Return the different texts that each answer has been, since the page was told to WATCH."""
        sides = self.page.evaluate("window.seen")
        return [list(dict.fromkeys(words(t) for t in texts if len(t) > 1)) for texts in sides]

    def set(self, label: str, value: float) -> None:
        self.page.get_by_label(label).first.fill(str(value))
        self.page.keyboard.press("Tab")

    def answers_at_rest(self) -> list[str]:
        """Return the answers when a second passes in which they stay as they are."""
        end, before = time.monotonic() + WAIT_SECONDS, None
        while (found := self.answers()) != before:
            assert time.monotonic() < end
            before = found
            time.sleep(1)
        return found

    def answers_beyond(self, length: int) -> list[str]:
        end = time.monotonic() + WAIT_SECONDS
        while min(map(len, found := self.answers())) <= length:
            assert time.monotonic() < end, found
            time.sleep(0.02)
        return found


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(1000 * WAIT_SECONDS)
    yield page
    page.close()


@pytest.fixture
def chat(server, page):
    page.goto(server.address())
    page.get_by_role("button", name="Settings").click()
    chat = Chat(page)
    chat.set("Temperature", 0)
    return chat


@cache
def expected(folder: Path, *texts: str, tokens: int) -> str:
    """What transformers answers, greedily, where `texts` were said by turns."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    roles = ("user", "assistant") * len(texts)
    said = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    ids = tokenizer.apply_chat_template(
        said, chat_template=TEMPLATE, return_tensors="pt", return_dict=True
    )
    out = model.generate(**ids, do_sample=False, max_new_tokens=tokens, pad_token_id=0)
    return tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def words(text: str) -> str:
    return " ".join(text.split())


def test_both_models_answer_as_transformers_does_each_with_its_own_history(chat, models):
    chat.set("New tokens at most", 40)
    folders = (models.base, models.tuned)
    chat.ask(QUESTION)
    first = [expected(folder, QUESTION, tokens=40) for folder in folders]
    assert chat.wait() == [words(text) for text in first]
    chat.ask("Then came Sue.")
    second = [
        expected(folder, QUESTION, text, "Then came Sue.", tokens=40)
        for folder, text in zip(folders, first, strict=True)
    ]
    assert chat.wait() == [words(text) for text in second]
    assert first[0] != first[1] and second[0] != second[1]


def test_answers_grow_until_stopped_and_then_nothing_is_computed(chat, server, models):
    chat.page.evaluate(WATCH)
    chat.ask(QUESTION)
    chat.answers_beyond(30)
    chat.page.locator(".stop-button").click()
    chat.wait()
    stopped = chat.answers_at_rest()
    assert server.rest() < SECONDS_TO_STOP
    assert chat.answers() == stopped
    for side, folder in enumerate((models.base, models.tuned)):
        whole, grown = words(expected(folder, QUESTION, tokens=400)), chat.pictures()[side]
        assert len(grown) >= 3
        assert all(after.startswith(before) for before, after in pairwise([*grown, whole]))
        assert len(stopped[side]) < len(whole)


def test_a_closed_tab_ends_the_answer(server, page):
    page.goto(server.address())
    Chat(page).ask(QUESTION)
    page.close()
    assert server.rest() < SECONDS_TO_STOP


def test_temperature_0_repeats_itself_and_1_5_does_not(chat):
    chat.set("New tokens at most", 20)
    found = []
    for temperature in (0, 0, 1.5):
        chat.set("Temperature", temperature)
        chat.ask(QUESTION)
        found.append(chat.wait())
        chat.page.get_by_role("button", name="New chat").click()
        chat.page.locator("[data-testid=bot]").first.wait_for(state="detached")
    assert found[0] == found[1]
    assert found[0][0] != found[2][0] and found[0][1] != found[2][1]


def test_what_cannot_be_answered_is_told_and_given_back(chat):
    chat.send("word " * 600)
    chat.page.get_by_text("positions are full").wait_for()
    chat.set("New tokens at most", 0)
    chat.send("Hello?")
    chat.page.get_by_text("max_new_tokens is 0, but must be at least 1").wait_for()
    chat.page.locator(".submit-button").wait_for()
    assert chat.box.input_value() == "Hello?"
    assert chat.page.locator("[data-testid=bot]").count() == 0


def test_the_browser_asks_no_other_server(server, page):
    elsewhere = socket.create_server(("127.0.0.1", 0))
    elsewhere.settimeout(0.5)
    asked = []
    page.on("request", lambda request: asked.append(request))
    page.goto(server.address())
    chat = Chat(page)
    chat.ask(f"![an image](http://127.0.0.1:{elsewhere.getsockname()[1]}/image.png)")
    page.locator("[data-testid=user] img").first.wait_for(state="attached")
    with pytest.raises(TimeoutError):
        elsewhere.accept()
    sent = [request.url for request in asked if request.failure != "csp"]
    own = (server.address(), "data:", "blob:")
    assert [url for url in sent if not url.startswith(own)] == []
    assert "connects to" not in server.said


def test_ctrl_c_ends_it_in_the_middle_of_an_answer(chat, server):  # the last that needs the server
    chat.ask(QUESTION)
    chat.answers_beyond(0)
    server.process.send_signal(signal.SIGINT)
    assert server.end() == 0
    assert server.said.splitlines()[-1] == "ended"
    assert "Traceback" not in server.said


def test_a_port_that_is_taken_is_an_error_that_names_another(tmp_path):
    chat_ui = pytest.importorskip("torchtune_integrations.chat_ui")
    pytest.importorskip("gradio")
    loaded = load_checkpoint(tiny_checkpoint(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port + 1}") as caught:
            chat_ui.serve(loaded, port=port)
    assert caught.value.code == "E-PORT"


def test_a_model_without_a_chat_template_is_refused(tmp_path):
    chat_ui = pytest.importorskip("torchtune_integrations.chat_ui")
    pytest.importorskip("gradio")
    loaded = load_checkpoint(tiny_checkpoint(tmp_path, chat_template=None))
    with pytest.raises(MissingError, match=r"chat_template\.jinja") as caught:
        chat_ui.build_page(loaded)
    assert caught.value.code == "E-CHAT-TEMPLATE"


def test_without_gradio_it_says_what_to_install(tmp_path, monkeypatch):
    chat_ui = pytest.importorskip("torchtune_integrations.chat_ui")
    loaded = load_checkpoint(tiny_checkpoint(tmp_path))
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingError, match=r'pip install "torchtune-integrations\[ui\]"') as caught:
        chat_ui.build_page(loaded)
    assert (caught.value.code, caught.value.exit_code) == ("E-PACKAGE", 3)
