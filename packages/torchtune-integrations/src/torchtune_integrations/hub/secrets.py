"""Keys, tokens and passwords, found before they are published."""

import re
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from torchtune.errors import ConfigError, Faults

__all__ = ["check_secrets", "without_secrets"]

NAMES = (
    ".env", ".env.*", "*.pem", "*.key", "*.p12", "*.pfx", "*.kdbx", "id_rsa*", "id_dsa*",
    "id_ecdsa*", "id_ed25519*", ".netrc", "_netrc", ".npmrc", ".pypirc", ".git-credentials",
    "credentials", "credentials.*", "secrets.*", "token",
)  # fmt: skip
"""Files that hold secrets, by their names."""

PATTERNS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "a secret key (sk-...)": r"(?<![A-Za-z0-9])sk-(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{20,}",
    "an AWS access key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{40,})",
    "a Google API key": r"\bAIza[A-Za-z0-9_-]{35}",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@]+:[^\s/@]+@",
}
"""What is searched in every text that goes up, by what it is."""

_KEYS = re.compile(
    r"(?:.*[_-])?(?:api_?key|secret(?:_?key)?|password|passwd|credentials?)"
    r"|(?:(?:auth|access|api|bearer|hf|hub|login)_?)?token",
    re.I,
)
_BINARY = (".safetensors", ".png", ".model")


def check_secrets(files: Mapping[str, Path | bytes], folder: Path | None = None) -> None:
    """Refuse files that look like secrets or hold some; what they hold is not shown.

    Args:
        files: What is to be published, by its name there.
        folder: Where they lie: any file in it whose name tells of a secret is refused too, though
            it would stay behind.

    Raises:
        ConfigError: E-SECRET, one for each file.
    """
    found = [ConfigError("E-SECRET", what, where=where, do=do) for what, where, do in _found(files)]
    for path in sorted(folder.rglob("*")) if folder else []:
        if any(fnmatch(path.name.lower(), name) for name in NAMES):
            what = f"{path.name} looks like a secret"
            do = "move it out of the folder that is published"
            found.append(ConfigError("E-SECRET", what, where=str(path), do=do))
    if found:
        raise Faults(found) if len(found) > 1 else found[0]


def _found(files: Mapping[str, Path | bytes]) -> list[tuple[str, str, str]]:
    found = []
    for name, content in files.items():
        if name.endswith(_BINARY):
            continue
        data = content if isinstance(content, bytes) else content.read_bytes()
        text = data.decode("utf-8", "replace")
        for kind, pattern in PATTERNS.items():
            if match := re.search(pattern, text):
                line = text.count("\n", 0, match.start()) + 1
                do = "take it out, and make it invalid where it was issued if others saw it"
                found.append((f"{name} holds what looks like {kind}", f"{name}:{line}", do))
    return found


def without_secrets(value: Any) -> Any:
    """Return JSON or YAML values with what lies under names such as ``api_key`` left out."""
    if isinstance(value, dict):
        return {
            key: "(left out)"
            if isinstance(inside, str) and _KEYS.fullmatch(str(key))
            else without_secrets(inside)
            for key, inside in value.items()
        }
    return [without_secrets(inside) for inside in value] if isinstance(value, list) else value
