"""A checkpoint made ready for the hub: its card and its files, checked."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torchtune.errors import ConfigError

from torchtune_integrations.hub.base_model import BaseModel, find_base
from torchtune_integrations.hub.card import TO_WRITE, model_card
from torchtune_integrations.hub.files import files_to_push
from torchtune_integrations.hub.front_matter import read_front_matter
from torchtune_integrations.hub.licence import Licence, check_not_wider, licence_of_card
from torchtune_integrations.hub.secrets import check_secrets
from torchtune_integrations.hub.trained_model import read_trained_model

__all__ = ["CARD", "Publication", "prepare"]

CARD = "README.md"


@dataclass(frozen=True)
class Publication:
    """What will be on the hub, in full; make one with `prepare`.

    Args:
        repo: Where, ``USER/NAME``.
        private: Whether nobody else may see it.
        card: The model card, Markdown.
        files: The other files by their names there: a path, or the bytes themselves.
        base: What the model was made from.
        licence: What the card gives; None where it gives none.
        step: After which optimizer step of its run; None outside a run.
    """

    repo: str
    private: bool
    card: str
    files: Mapping[str, Path | bytes]
    base: BaseModel
    licence: Licence | None
    step: int | None = None

    def with_card(self, card: str, *, where: str) -> "Publication":
        """Return it with another card.

        Args:
            card: Markdown with its fields at the head.
            where: The file's name, for errors.

        Raises:
            ConfigError: E-CARD if the head cannot be read; E-LICENCE if its licence is wider than
                the base's; E-SECRET.
        """
        licence = licence_of_card(read_front_matter(card, where=where))
        if licence and self.base.licence:
            check_not_wider(licence, self.base.licence, where=f"{where}: license")
        check_secrets({where: card.encode()})
        return replace(self, card=card, licence=licence)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each file, the card among them, sorted by name."""
        every = {**self.files, CARD: self.card.encode()}
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in sorted(every.items())
        }

    def notes(self) -> list[str]:
        """Return what the author may want to see to first, a sentence each."""
        found = []
        if count := self.card.count(TO_WRITE):
            found.append(f"{count} passages of the card are yours to write: {TO_WRITE.strip('*:')}")
        if self.licence is None:
            found.append("the card gives no licence; --license sets it, or `license:` in the card")
        elif self.base.licence is None and self.base.repo:
            found.append(
                f"the licence of {self.base.repo} is not known here: see that yours fits it"
            )
        if self.licence and self.licence.asks_for_llama(self.repo):
            found.append(f"the licence {self.licence} wants the model's name to begin with Llama")
        return found

    def check(self) -> None:
        """Refuse to show the world a model without a licence; in private it may wait.

        Raises:
            ConfigError: E-LICENCE.
        """
        if self.licence is None and not self.private:
            what = "a public model needs a licence, and the base's is not known here"
            do = "--license ID (never wider than the base's), or --private"
            raise ConfigError("E-LICENCE", what, where=self.repo, do=do)


def prepare(
    checkpoint: str | Path,
    repo: str,
    *,
    private: bool = False,
    licence: str | None = None,
    base_model: str | None = None,
    card: str | Path | None = None,
    token: str | None = None,
) -> Publication:
    """Make ready what a run's folder, a step folder, an adapter or a model would be on the hub.

    Asks the hub for the base's licence where its folder here does not tell; changes nothing.

    Args:
        checkpoint: The folder.
        repo: Where it would go, ``USER/NAME``.
        private: Whether nobody else may see it.
        licence: Its licence by the hub's identifier; None takes the base's.
        base_model: The base's id on the hub, where its download does not tell.
        card: A card of the author's; None makes one from the run.
        token: For a base that needs one.

    Raises:
        MissingError: A file is missing, or not as it was saved.
        ConfigError: The licence is wider than the base's, the base of an adapter is unknown, a file
            looks like a secret, or the name is none that the hub takes.
    """
    from torchtune_integrations.hub.upload import check_repo, published_licence

    check_repo(repo, where="--repo")
    if base_model:
        check_repo(base_model, where="--base-model")
    model = read_trained_model(checkpoint)
    base = find_base(model, base_model)
    if base.licence is None and base.repo:
        base = replace(base, licence=published_licence(base.repo, token))
    files = files_to_push(model, base)
    check_secrets(files, model.folder)
    if base.licence:
        base = replace(base, licence=base.licence.linked(base.repo, files))
    chosen = _choose_licence(licence, base)
    made = Publication(repo, private, "", files, base, chosen, model.progress.get("step"))
    if card is not None:
        return made.with_card(_read_card(Path(card)), where=str(card))
    return made.with_card(model_card(model, repo, base, chosen, files), where="the model card")


def _choose_licence(asked: str | None, base: BaseModel) -> Licence | None:
    if asked is None or (base.licence and base.licence.id == asked.lower()):
        return base.licence
    if base.licence:
        check_not_wider(Licence(asked.lower()), base.licence, where="--license")
    return Licence(asked.lower())


def _read_card(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = f"the card {path} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise ConfigError("E-CARD", what, where="--card") from None
