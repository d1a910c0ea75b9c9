"""Chat templates by name or path, the built-in ones among them."""

import re
from pathlib import Path

from torchtune.errors import ConfigError, MissingError

__all__ = ["builtin_templates", "find_template", "missing_tokens"]

FOLDER = Path(__file__).parent / "templates"
TOKENS = re.compile(r"\{#-? tokens:(.*?)-?#\}", re.DOTALL)


def builtin_templates() -> list[str]:
    """Return the names of the built-in chat templates, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.jinja"))


def find_template(name: str) -> str:
    """Return the jinja source of the built-in template `name`, or of the file at that path.

    A name wins over a file called like it; write ``./llama3`` for the file.

    Raises:
        MissingError: There is neither.
        ConfigError: The file is not text in UTF-8.
    """
    names = builtin_templates()
    path = FOLDER / f"{name}.jinja" if name in names else Path(name).expanduser()
    if not path.is_file():
        what = f"no chat template {name!r}: no such file, and no built-in one of that name"
        do = f"the built-in ones are {', '.join(names)}"
        raise MissingError("E-CHAT-TEMPLATE", what, where="chat_template", do=do)
    try:
        return path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ConfigError("E-CHAT-TEMPLATE", f"not UTF-8: {error}", where=str(path)) from None


def missing_tokens(source: str, special_tokens: "list[str] | set[str]") -> list[str]:
    """Return the special tokens that a built-in template says it needs and that are not there."""
    said = TOKENS.search(source)
    return [token for token in said[1].split() if token not in special_tokens] if said else []
