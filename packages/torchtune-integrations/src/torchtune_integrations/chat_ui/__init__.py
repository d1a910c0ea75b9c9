"""A chat with a model, or with two side by side, on a web page; needs the extra `ui`."""

from torchtune_integrations.chat_ui.page import build_page
from torchtune_integrations.chat_ui.server import serve

__all__ = ["build_page", "serve"]
