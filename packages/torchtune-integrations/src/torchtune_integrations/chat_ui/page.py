"""The page: chats side by side, a box to write in, and what can be set."""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torchtune.errors import MissingError, TuneError
from torchtune.generation import Conversation, LoadedCheckpoint, Sampling

from torchtune_integrations.chat_ui.conversation import Turn, Turns, ask, paced, with_form_of

if TYPE_CHECKING:
    import gradio

__all__ = ["CHAT_SAMPLING", "build_page", "import_gradio"]

CHAT_SAMPLING = Sampling(temperature=0.7)
"""Lively, and still to the point: the likeliest words alone sound the same at each question."""
REDRAW_SECONDS = 0.05
"""Between two pictures of an answer: each is sent to the browser, which costs more than a token."""
Update = dict[Any, Any]  # components and their new values


def build_page(
    loaded: LoadedCheckpoint,
    *,
    compare: LoadedCheckpoint | None = None,
    system: str | None = None,
    sampling: Sampling = CHAT_SAMPLING,
    max_new_tokens: int = 512,
    stop: Collection[str] = (),
) -> "gradio.Blocks":
    """Return the page as Gradio's Blocks, to be launched or put into a larger one.

    Answers are shown as they grow. One question is answered at a time, whoever asks; to stop it
    ends the work too.

    Args:
        loaded: The model to talk to.
        compare: A model that answers the same questions beside it, with a history of its own; one
            without a chat template is asked in that of `loaded`.
        system: The system message that the page begins with.
        sampling: Its temperature and top-p are where the page's controls begin; the rest holds for
            every answer.
        max_new_tokens: Of one answer, where the page's control begins.
        stop: Texts before which an answer ends.

    Raises:
        MissingError: E-PACKAGE, Gradio is not installed; E-CHAT-TEMPLATE, `loaded` has none.
        ConfigError: E-CHAT-TEMPLATE, that of `loaded` needs tokens that `compare` does not have.
    """
    gr = import_gradio()
    Conversation(loaded)  # raises where no conversation is possible
    models = {_name(loaded.folder): loaded}
    if compare is not None:
        base, tuned = f"Base: {_name(compare.folder)}", f"Tuned: {_name(loaded.folder)}"
        models = {base: with_form_of(compare, loaded), tuned: loaded}
    page = _Page(gr, models, sampling, stop)
    page.lay_out(system or "", max_new_tokens)
    return page.blocks


def import_gradio() -> ModuleType:
    """Import Gradio with its usage reports off.

    Raises:
        MissingError: E-PACKAGE, it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        what = "the chat page needs a package that is not installed"
        do = 'pip install "torchtune-integrations[ui]"'
        raise MissingError("E-PACKAGE", what, where="--ui", do=do) from error
    return gradio


def _name(folder: Path) -> str:
    """Return the folder's name; before that of a run's step comes the run's."""
    folder = folder.resolve()
    is_step = folder.name.startswith("step_")
    return f"{folder.parent.name}/{folder.name}" if is_step else folder.name


class _Page:
    """The page's parts, and what its buttons do."""

    def __init__(
        self,
        gr: ModuleType,
        models: Mapping[str, LoadedCheckpoint],
        sampling: Sampling,
        stop: Collection[str],
    ) -> None:
        self.gr, self.models, self.sampling, self.stop = gr, models, sampling, stop
        self.blocks = gr.Blocks(title=" | ".join(models), fill_height=True, analytics_enabled=False)

    def lay_out(self, system: str, max_new_tokens: int) -> None:
        """Put the parts on the page, from top to bottom, and connect them."""
        gr = self.gr
        with self.blocks:
            self.turns = gr.State(())
            with gr.Row(elem_classes="head"):
                gr.Markdown("### torchtune chat")
                new = gr.Button("New chat", size="sm", scale=0, min_width=110)
            with gr.Row():
                self.chats = [self._chat(name) for name in self.models]
            self.box = gr.Textbox(
                placeholder="Ask something", show_label=False, max_lines=12, autofocus=True,
                submit_btn=True,
            )  # fmt: skip
            with gr.Row():
                start = self.sampling.temperature
                temperature = gr.Slider(
                    0, max(2, start), start, step=0.05, label="Temperature", min_width=260
                )
                with gr.Column(scale=2), gr.Accordion("Settings", open=False):
                    settings = self._settings(system, max_new_tokens)
            self._connect(new, [temperature, *settings])

    def _chat(self, name: str) -> Any:
        return self.gr.Chatbot(
            label=name, height=None, min_height=240, min_width=320, buttons=["copy"],
            feedback_options=None, elem_classes="chat",
        )  # fmt: skip

    def _settings(self, system: str, max_new_tokens: int) -> list[Any]:
        top_p = self.sampling.top_p or 1
        return [
            self.gr.Slider(min(0.05, top_p), 1, top_p, step=0.05, label="Top-p"),
            self.gr.Number(max_new_tokens, label="New tokens at most", precision=0),
            self.gr.Textbox(system, label="System message", lines=2),
        ]

    def _connect(self, new: Any, settings: list[Any]) -> None:
        shown = [self.turns, *self.chats]
        asked = self.box.submit(
            self.answer, [self.box, self.turns, *settings], [self.box, *shown],
            show_progress="hidden", concurrency_limit=1,
        )  # fmt: skip
        asked.then(self._ready, None, self.box, show_progress="hidden")
        self.box.stop(self._ready, None, self.box, cancels=asked, show_progress="hidden")
        self.gr.on(
            [new.click, *(chat.clear for chat in self.chats)],
            lambda: {self.box: self._ready(), **self._show(())}, None, [self.box, *shown],
            cancels=asked, show_progress="hidden",
        )  # fmt: skip

    def _ready(self) -> Any:
        return self.gr.Textbox(submit_btn=True, stop_btn=False)

    def answer(
        self,
        question: str,
        before: Turns,
        temperature: float,
        top_p: float,
        max_new_tokens: int | None,
        system: str,
    ) -> Iterator[Update]:
        """Yield what the page shows from the question to the end of its answers."""
        if not question.strip():
            yield {self.turns: before}
            return
        models = list(self.models.values())
        turn = Turn(question, ("",) * len(models))
        box = self.gr.Textbox("", submit_btn=False, stop_btn=True)
        yield {self.box: box, **self._show((*before, turn))}
        try:
            sampling = replace(self.sampling, temperature=temperature, top_p=top_p)
            asked = ask(
                models, before, question, system=system, max_new_tokens=max_new_tokens or 0,
                sampling=sampling, stop=self.stop,
            )  # fmt: skip
            with closing(asked):
                for turn in paced(asked, REDRAW_SECONDS):
                    yield self._show((*before, turn))
            if turn.forgotten:
                self.gr.Info(f"No room for all of it: {turn.forgotten} old messages are left out")
        except TuneError as error:
            what = "; ".join(filter(None, [error.what, error.do]))
            self.gr.Warning(f"No answer to this question: {what}")
            yield {self.box: question, **self._show(before)}

    def _show(self, turns: Turns) -> Update:
        sides = enumerate(self.chats)
        return {self.turns: turns, **{chat: _bubbles(turns, side) for side, chat in sides}}


def _bubbles(turns: Turns, side: int) -> list[dict[str, str]]:
    """Return one model's side of the conversation in Gradio's form."""
    bubbles = []
    for turn in turns:
        nothing = "*(an empty answer)*" if turn.ended else "…"
        bubbles.append({"role": "user", "content": turn.question})
        bubbles.append({"role": "assistant", "content": turn.answers[side] or nothing})
    return bubbles
