"""The model card: what a run's folder tells, laid out for whoever meets the model on the hub."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torchtune_integrations.hub.base_model import BaseModel, is_repo
from torchtune_integrations.hub.front_matter import write_front_matter
from torchtune_integrations.hub.licence import Licence
from torchtune_integrations.hub.local_paths import without_local_paths
from torchtune_integrations.hub.secrets import without_secrets
from torchtune_integrations.hub.trained_model import TrainedModel
from torchtune_integrations.hub.usage import usage

__all__ = ["BADGE", "PICTURE", "PROJECT", "TO_WRITE", "model_card"]

PROJECT = "https://huggingface.co/models?other=torchtune"
BADGE, PICTURE = "badge.svg", "loss.png"
TO_WRITE = "**To be written by the author:**"
"""Stands before each question of a card that only its author can answer."""

ASKED = {
    "What it is for": "who should use this model, for what, and how well is that tried?",
    "Limits": "where does it fail, what must it not be used for, and what biases do the base and "
    "the data bring?",
}


def model_card(
    model: TrainedModel, repo: str, base: BaseModel, licence: Licence | None, files: Iterable[str]
) -> str:
    """Return the README.md of a model, with no path, name or key of the machine it was made on.

    Args:
        model: The checkpoint and its run's records.
        repo: Where it goes, ``USER/NAME``.
        base: What it was made from.
        licence: What it gets; None says that it is still to be set.
        files: Names of the files beside the card.
    """
    beside = set(files)
    chat = "chat_template.jinja" in beside or "chat_template.json" in beside
    parts = [
        f"# {repo.rpartition('/')[2]}",
        f"[![Trained w/ Torchtune]({BADGE})]({PROJECT})",
        _summary(model, base),
        _origin(base, licence),
        usage(repo, base=base.repo, adapter=model.adapter, chat=chat),
        *(f"## {title}\n\n> {TO_WRITE} {question}" for title, question in ASKED.items()),
        _data(model),
        _results(model, PICTURE in beside),
        _training(model),
        _environment(model),
    ]
    return _head(model, base, licence) + "\n" + "\n\n".join(filter(None, parts)) + "\n"


def _head(model: TrainedModel, base: BaseModel, licence: Licence | None) -> str:
    hub_data = [name for name, digest in _sources(model) if digest is None and is_repo(name)]
    relation = "adapter" if model.is_adapter else "finetune"
    return write_front_matter(
        {
            "base_model": base.repo,
            "base_model_relation": relation if base.repo else None,
            "datasets": hub_data,
            "library_name": "peft" if model.is_adapter else "transformers",
            **(licence.fields() if licence else {}),
            "pipeline_tag": "text-generation",
            "tags": ["torchtune", *(["lora"] if model.is_adapter else [])],
        }
    )


def _summary(model: TrainedModel, base: BaseModel) -> str:
    named = f"[{base.repo}](https://huggingface.co/{base.repo})" if base.repo else ""
    by = f"[torchtune]({PROJECT})"
    if model.is_adapter:
        targets = model.adapter.get("target_modules") or []
        on = targets if isinstance(targets, str) else ", ".join(targets)
        shape = f"rank {model.adapter.get('r')}, alpha {model.adapter.get('lora_alpha')}, on {on}"
        return f"A LoRA adapter ({shape}) for {named}, trained with {by}."
    if model.run:
        return f"{named or 'A language model'}, all weights trained with {by}."
    if model.merged_from:
        return f"{named or 'A language model'} with an adapter merged in, made with {by}."
    return f"{'A model made from ' + named if named else 'A language model'}, prepared with {by}."


def _origin(base: BaseModel, licence: Licence | None) -> str:
    rows = []
    if base.repo:
        commit = f" at commit `{base.revision[:12]}`" if base.revision else ""
        rows.append(("base model", f"[{base.repo}](https://huggingface.co/{base.repo}){commit}"))
    if base.licence:
        rows.append(("the base's licence", _named(base.licence)))
    rows.append(("licence", _named(licence) if licence else f"{TO_WRITE} not set yet"))
    return "\n\n".join(filter(None, [_list(rows), licence.notice if licence else ""]))


def _named(licence: Licence) -> str:
    return f"[{licence}]({licence.link})" if licence.link else str(licence)


def _sources(model: TrainedModel) -> list[tuple[str, str | None]]:
    """Return what the run's datasets read, as the config names it, each with its sha256 if local."""
    digests = model.environment.get("data") or {}
    found: dict[str, str | None] = {}
    for key in ("dataset", "dataset_val"):
        component = model.config.get(key) or {}
        source = component.get("source") if isinstance(component, Mapping) else component
        for name in source if isinstance(source, list) else [source]:
            if name:
                found[str(name)] = digests.get(str(name))
    return list(found.items())


def _data(model: TrainedModel) -> str:
    rows = []
    for name, digest in _sources(model):
        shown = f"`{without_local_paths(name)}`"
        if digest is None and is_repo(name):
            shown = f"[{name}](https://huggingface.co/datasets/{name})"
        rows.append((shown, _row_count(name, digest), f"`{digest}`" if digest else ""))
    return "## Training data\n\n" + _table(("data", "rows", "sha256"), rows) if rows else ""


def _row_count(source: str, digest: str | None) -> str:
    """Return how many rows a local source has, if it is still what the run read."""
    from torchtune.data import load_rows
    from torchtune.errors import TuneError
    from torchtune.training import data_digests

    if digest is None or data_digests({"source": source}).get(source) != digest:
        return ""
    try:
        return f"{len(load_rows(source)):,}"
    except TuneError:  # only the run's own options can read it
        return ""


def _results(model: TrainedModel, picture: bool) -> str:
    losses = [line for line in model.metrics if "loss" in line]
    rows = [("training loss, last step", f"{losses[-1]['loss']:.4f}")] if losses else []
    held_out = [line for line in model.metrics if "val_loss" in line]
    if held_out:
        best = min(held_out, key=lambda line: line["val_loss"])
        rows.append(("validation loss, last", f"{held_out[-1]['val_loss']:.4f}"))
        rows.append((f"validation loss, best (step {best['step']:,})", f"{best['val_loss']:.4f}"))
    rows += _scores(model.metrics)
    if not rows:
        return ""
    shown = f"\n\n![The loss over the run's steps]({PICTURE})" if picture else ""
    unit = "Losses are means over the trained tokens, in nats."
    return "## Results\n\n" + _table(("figure", "value"), rows) + f"\n\n{unit}{shown}"


def _scores(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the last score of each task that was evaluated in the run, with its standard error."""
    last: dict[str, float] = {}
    for line in metrics:
        last |= {key: value for key, value in line.items() if "/" in key}
    errors = {key for key in last if key.endswith("_stderr")}
    rows = []
    for key in sorted(set(last) - errors):
        error = last.get(f"{key}_stderr")
        rows.append((key, f"{last[key]:.4f}" + (f" ± {error:.4f}" if error is not None else "")))
    return rows


def _training(model: TrainedModel) -> str:
    said = model.progress
    names = ("step", "epoch", "tokens", "supervised_tokens")
    labels = ("optimizer steps", "whole epochs", "tokens read", "of them trained")
    rows = [
        (label, f"{said[name]:,}")
        for name, label in zip(names, labels, strict=True)
        if name in said
    ]
    parts = [_list(rows)] if rows else []
    if model.config:
        import yaml

        config = without_secrets(without_local_paths(dict(model.config)))
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        folded = "<details>\n<summary>The configuration of the run</summary>"
        parts.append(f"{folded}\n\n````yaml\n{text}````\n\n</details>")
    if not parts:
        parts = [f"> {TO_WRITE} how was it made, and from which data?"]
    return "\n\n".join(["## How it was trained", *parts])


def _environment(model: TrainedModel) -> str:
    said = model.environment
    versions = {"python": said.get("python"), **(said.get("packages") or {})}
    rows = [(name, str(version)) for name, version in versions.items() if version]
    rows += [("device", device) for device in sorted(set(said.get("devices") or []))]
    if system := str(said.get("platform") or "").partition("-")[0]:
        rows.append(("system", system))
    return "## Environment\n\n" + _list(rows) if rows else ""


def _list(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines
    )
