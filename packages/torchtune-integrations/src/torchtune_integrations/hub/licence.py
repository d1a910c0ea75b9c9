"""Licences as model cards name them: read from the base, passed on, and never made wider."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torchtune.errors import ConfigError

from torchtune_integrations.hub.front_matter import read_front_matter

__all__ = ["LEGAL_FILES", "Licence", "check_not_wider", "licence_of_card", "read_licence"]

LEGAL_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
"""What a base's licence may ask to be handed on with it."""

NO_CONDITIONS = {"cc0-1.0", "unlicense", "wtfpl", "pddl"}
"""Licences that waive even the naming of the author."""

PERMISSIVE = {
    "afl-3.0", "apache-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0",
    "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cdla-permissive-1.0",
    "cdla-permissive-2.0", "ecl-2.0", "isc", "mit", "ncsa", "odc-by", "postgresql", "zlib",
}  # fmt: skip
"""Licences that let a derived work have another one, as long as the author stays named."""

_LLAMA = (
    "{0} is licensed under the {0} Community License, "
    "Copyright © Meta Platforms, Inc. All Rights Reserved."
)
NOTICES = {
    "llama2": _LLAMA.format("Llama 2"),
    "llama3": "Built with Meta Llama 3. " + _LLAMA.format("Meta Llama 3"),
    "llama3.1": "Built with Llama. " + _LLAMA.format("Llama 3.1"),
    "llama3.2": "Built with Llama. " + _LLAMA.format("Llama 3.2"),
    "llama3.3": "Built with Llama. " + _LLAMA.format("Llama 3.3"),
    "llama4": "Built with Llama. " + _LLAMA.format("Llama 4"),
    "gemma": "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms",
}
"""What a licence asks to be said of a work that is built on the model."""

NAMED_LLAMA = ("llama3", "llama4")
"""Beginnings of licences that ask for names of derived models to begin with Llama."""


@dataclass(frozen=True)
class Licence:
    """A licence as the head of a model card gives it.

    Args:
        id: The hub's identifier, such as ``apache-2.0``; ``other`` where it has none.
        name: What it is called where the identifier is ``other``.
        link: Its text: an address, or a file beside the card.
    """

    id: str
    name: str | None = None
    link: str | None = None

    @property
    def notice(self) -> str:
        """The sentence that it asks for in what describes a derived model; may be empty."""
        return NOTICES.get(self.id, "")

    def fields(self) -> dict[str, str | None]:
        """Return what the head of a card says of it."""
        return {"license": self.id, "license_name": self.name, "license_link": self.link}

    def linked(self, base: str | None, files: Mapping[str, object]) -> "Licence":
        """Return it with a link that leads somewhere from a card beside `files`.

        Args:
            base: The base's id on the hub: a file that does not come along is linked there.
            files: Names of the files beside the card.
        """
        if self.link is None or "://" in self.link or self.link in files:
            return self
        there = f"https://huggingface.co/{base}/blob/main/{self.link}" if base else None
        return replace(self, link=there)

    def asks_for_llama(self, repo: str) -> bool:
        """Whether it wants a model's name to begin with Llama, and `repo` does not."""
        name = repo.rpartition("/")[2].lower()
        return self.id.startswith(NAMED_LLAMA) and not name.startswith("llama")

    def __str__(self) -> str:
        return self.name if self.id == "other" and self.name else self.id


def licence_of_card(fields: Mapping[str, Any]) -> Licence | None:
    """Return the licence that the head of a card gives, if any."""
    given, name, link = (fields.get(key) for key in ("license", "license_name", "license_link"))
    if isinstance(given, list):
        if len(given) != 1:  # one of several, or all of them: a card does not say
            name, given = " and ".join(map(str, given)), given and "other"
        else:
            given = given[0]
    if not given:
        return None
    return Licence(str(given).lower(), str(name) if name else None, str(link) if link else None)


def read_licence(folder: Path) -> Licence | None:
    """Return the licence that the README.md of a model's folder gives, if any."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    return licence_of_card(read_front_matter(card.read_text("utf-8", "replace"), where=str(card)))


def check_not_wider(licence: Licence, base: Licence, *, where: str) -> None:
    """Refuse a licence that grants more than that of the model it is derived from.

    A base without conditions may get any licence, a permissive one any that keeps its author's
    name; every other licence (Llama's, Gemma's, non-commercial, share-alike, unknown to us) has to
    be kept as it is.

    Args:
        licence: What the derived model shall have.
        base: What the base has.
        where: Where `licence` was given.

    Raises:
        ConfigError: E-LICENCE.
    """
    same = (licence.id, licence.name) == (base.id, base.name)
    narrower = base.id in PERMISSIVE and licence.id not in NO_CONDITIONS
    if same or base.id in NO_CONDITIONS or narrower:
        return
    what = f"{str(licence)!r} may grant more than the base's licence {str(base)!r} allows"
    do = f"keep the base's: {base.id!r}" + (f", license_name {base.name!r}" if base.name else "")
    raise ConfigError("E-LICENCE", what, where=where, do=do)
