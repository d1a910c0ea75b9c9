"""The page's own small web server, which nobody but the browser hears of."""

import logging
import os
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import TYPE_CHECKING, Any

from torchtune.errors import ConfigError
from torchtune.generation import LoadedCheckpoint, Sampling

from torchtune_integrations.chat_ui.page import CHAT_SAMPLING, build_page, import_gradio

if TYPE_CHECKING:
    import gradio

__all__ = ["serve"]

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:"
)
"""For the browser: ask no other server, not even for an image whose address a model wrote."""
CSS = """
.gradio-container > .main { max-width: 1280px; margin: 0 auto; }
footer, .chat .top-panel { display: none; }
.head { align-items: center; }
.chat { height: calc(100dvh - 14.75rem); }
@media (max-width: 700px) {
  .chat { height: calc(100dvh - 20rem); }
  .chat:not(:only-child) { height: 38dvh; }
}
"""
"""The chats fill the window and scroll; on a narrow screen two of them stand one above the other."""
ANYWHERE = "0.0.0.0"
TOKEN_SECONDS = 30
"""The longest wait for a token, or for a long prompt to be read, before leaving."""
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


def serve(
    loaded: LoadedCheckpoint,
    *,
    compare: LoadedCheckpoint | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    system: str | None = None,
    sampling: Sampling = CHAT_SAMPLING,
    max_new_tokens: int = 512,
    stop: Collection[str] = (),
) -> None:
    """Serve the page of `build_page` until Ctrl-C; its address goes to stderr.

    The browser is told to ask no other server for anything, and nothing is reported to anyone.

    Args:
        loaded: This and what is not named here: see `build_page`.
        host: Where to listen: an IPv4 address or a name of this machine. Whoever reaches it can
            ask; by default that is this machine alone.
        port: Where to listen; 0 takes a free one.

    Raises:
        MissingError: E-PACKAGE, Gradio is not installed; E-CHAT-TEMPLATE, `loaded` has none.
        ConfigError: E-PORT, the address is taken or not this machine's; E-CHAT-TEMPLATE, that of
            `loaded` needs tokens that `compare` does not have.
    """
    page = build_page(
        loaded, compare=compare, system=system, sampling=sampling, max_new_tokens=max_new_tokens,
        stop=stop,
    )  # fmt: skip
    port = _free_port(host, port)
    threads = set(threading.enumerate())
    _launch(page, host, port)
    name = socket.gethostname() if host == ANYWHERE else host
    print(f"chat at http://{name}:{port} (Ctrl-C ends it)", file=sys.stderr, flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("\nended", file=sys.stderr)
    finally:
        _close(page, threads)


def _free_port(host: str, port: int) -> int:
    try:
        with socket.create_server((host, port)) as found:
            return int(found.getsockname()[1])
    except OSError as error:
        what = f"cannot listen at {host}:{port}: {error.strerror}"
        do = f"choose another, such as --port {port + 1}, or --port 0 for one that is free"
        raise ConfigError("E-PORT", what, where="port", do=do) from None


def _launch(page: "gradio.Blocks", host: str, port: int) -> None:
    theme = import_gradio().themes.Default(
        primary_hue="indigo",
        font=("system-ui", "sans-serif"),  # the default asks a server for its fonts
        font_mono=("ui-monospace", "monospace"),
    )
    for name in ("no_proxy", "NO_PROXY"):  # Gradio asks its own server whether it is there
        os.environ[name] = ",".join([*filter(None, [os.environ.get(name)]), host, "localhost"])
    page.launch(
        server_name=host, server_port=port, share=False, ssr_mode=False, mcp_server=False,
        prevent_thread_lock=True, quiet=True, theme=theme, css=CSS, footer_links=[],
        app_kwargs={"middleware": [(_OnlyHere, (), {})]},
    )  # fmt: skip


def _close(page: "gradio.Blocks", threads: set[threading.Thread]) -> None:
    """End the server without waiting for open tabs, and without a word on each of them.

    Its threads, all but `threads`, may be in the middle of a token: a process that left now would
    be aborted by torch.
    """
    log = logging.getLogger("uvicorn.error")
    level = log.level
    log.setLevel(logging.CRITICAL)
    page.server.force_exit = True
    # Since Python 3.12 asyncio's servers wait for open connections whatever uvicorn is told.
    page.server.config.timeout_graceful_shutdown = 1
    page.close(verbose=False)
    for thread in set(threading.enumerate()) - threads:
        thread.join(TOKEN_SECONDS)
    log.setLevel(level)


class _OnlyHere:
    """ASGI middleware that puts `POLICY` on every answer."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Callable[..., Any], send: Send) -> None:
        """Pass the request on."""

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers", ())
                message["headers"] = [*headers, (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy)
