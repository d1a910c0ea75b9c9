"""The facts of `torchtune.checkpoint.describe` as lines of text."""

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["next_command", "text_of"]

Row = tuple[str, str]
LONGEST = 300


def text_of(report: Mapping[str, Any]) -> str:
    """Return a report as a headline and one aligned line for each fact."""
    kind = report["kind"]
    article = "an" if kind == "adapter" else "a"
    named = {"dataset": "data set", "safetensors": "file of weights"}.get(kind, kind)
    head = f"{report['path']}: {article} {named}{_verdict(report)}"
    rows = [*_ROWS[kind](report), *(("problem", _short(what)) for what in report["problems"])]
    wide = max(len(label) for label, _ in rows) + 2
    return "\n".join([head, "", *(f"{label:<{wide}}{text}".rstrip() for label, text in rows)])


def _verdict(report: Mapping[str, Any]) -> str:
    if report["kind"] in ("dataset", "config"):
        return ", which cannot be used as it is" if report["problems"] else ""
    return ", not whole" if report["problems"] else ", whole"


def next_command(report: Mapping[str, Any]) -> str:
    """Return what one would type next, having read the report."""
    path, kind = shlex.quote(str(report["path"])), report["kind"]
    if report["problems"]:
        return _mending(report, path)
    if kind == "adapter" and not report["base"]["found"]:
        return f"tune generate --checkpoint {path} --base DIR"
    if kind == "model" and not report["supported"]:
        return f"a model whose config.json has a model_type of these: {', '.join(_families())}"
    return {
        "model": f'tune generate --checkpoint {path} --prompt "..."',
        "adapter": f'tune generate --checkpoint {path} --prompt "..."',
        "run": f'tune generate --checkpoint {path} --prompt "..."',
        "tokenizer": f"tune data check ROWS --checkpoint {path}",
        "dataset": f"tune data check {path} --checkpoint DIR",
        "config": f"tune validate {path}",
        "safetensors": "tune inspect the folder that it lies in",
    }[kind]


def _families() -> list[str]:
    from torchtune.models import families  # late: loads torch

    return families()


def _mending(report: Mapping[str, Any], path: str) -> str:
    hub = report.get("hub") or {}
    if "repo" in hub:
        return f"tune download {hub['repo']} --output-dir {path}"
    if report["kind"] == "dataset":
        return f"tune data check {path} --checkpoint DIR --format FORMAT"
    if report["kind"] == "config":
        return f"tune validate {path}"
    return "fetch or save again what the problems name"


def _model_rows(report: Mapping[str, Any]) -> Iterable[Row]:
    sizes = report["sizes"]
    known = "" if report["supported"] else ", which torchtune cannot train"
    yield "architecture", f"{report['architecture'] or 'unknown'}{known}"
    yield from _weight_rows(report["weights"])
    yield "output matrix", "the embedding (tied)" if report["tied"] else "its own"
    if sizes:
        heads = f"{sizes.get('heads')} heads"
        heads += f" ({sizes['kv_heads']} of keys and values)" if "kv_heads" in sizes else ""
        yield "layers", f"{sizes.get('layers')} layers, {heads}"
        yield "width", f"{sizes.get('width', 0):,}, {sizes.get('inner', 0):,} inside a layer"
        rope = f", rope scaling {report['rope_scaling']}" if report["rope_scaling"] else ""
        yield "positions", f"{sizes.get('positions', 0):,}{rope}"
    yield from _origin_rows(report)
    yield from _tokenizer_rows(report["tokenizer"])


def _adapter_rows(report: Mapping[str, Any]) -> Iterable[Row]:
    method = f"{report['method']}{' (rank-stabilised)' if report['rslora'] else ''}"
    yield "method", f"{method}, rank {report['rank']}, alpha {report['alpha']}"
    yield "targets", _targets(report["targets"])
    yield from _weight_rows(report["weights"])
    base = report["base"]
    there = base["found"] and ("there" if base["found"] == base["said"] else f"in {base['found']}")
    yield "base", f"{base['said'] or 'not named'} ({there or 'not on this machine'})"
    yield from _origin_rows(report)
    if report["tokenizer"]:
        yield from _tokenizer_rows(report["tokenizer"])


def _targets(targets: Any) -> str:
    """Return a pattern as it is, and full names of layers by their last parts."""
    if isinstance(targets, str):
        return targets
    parts = sorted({str(name).rpartition(".")[2] for name in targets or []})
    count = f" ({len(targets)} layers by name)" if len(parts) < len(targets or []) else ""
    return _short(", ".join(parts)) + count


def _run_rows(report: Mapping[str, Any]) -> Iterable[Row]:
    steps, last, config = report["steps"], report["last"], report["config"]
    names = [name if whole else f"{name} (not whole)" for name, whole in steps.items()]
    yield "saved", _short(", ".join(names)) or "nothing yet"
    if last:
        yield "last step", f"{last['step']}, loss {last['loss']:.4f}, epoch {last.get('epoch', 0)}"
    if report["validations"]:
        best = min(report["validations"], key=lambda line: line["val_loss"])
        yield "best", f"step {best['step']}, loss on held-out rows {best['val_loss']:.4f}"
    for key in ("checkpoint", "dataset", "peft", "optimizer", "max_steps", "epochs"):
        if config.get(key) is not None:
            yield key, _short(_component(config[key]))
    if report["latest"]:
        yield "", ""
        yield "newest", f"{report['latest']['path']}, {report['latest']['kind']}"
        yield from _ROWS[report["latest"]["kind"]](report["latest"])


def _component(value: Any) -> str:
    """Return a component or a plain value as a user would write it on one line."""
    if not isinstance(value, Mapping):
        return value if isinstance(value, str) else json.dumps(value, default=str)
    rest = {key: v for key, v in value.items() if key != "_component_" and v is not None}
    name = [str(value["_component_"])] if "_component_" in value else []
    return " ".join([*name, *(f"{key}={_component(v)}" for key, v in rest.items())])


def _weight_rows(weights: Mapping[str, Any]) -> Iterable[Row]:
    kinds = weights["dtypes"]
    mixed = len(kinds) > 1
    dtypes = [f"{kind} ({count:,})" if mixed else kind for kind, count in kinds.items()]
    yield "parameters", f"{weights['parameters']:,} in {weights['tensors']:,} tensors"
    yield "dtype", ", ".join(dtypes) or "unknown"
    files = [f"{name} {_bytes(size)}" for name, size in weights["files"].items()]
    total = f", {_bytes(sum(weights['files'].values()))} in all" if len(files) > 1 else ""
    yield "files", _short(", ".join(files) + total) or "none"


def _origin_rows(report: Mapping[str, Any]) -> Iterable[Row]:
    hub, run = report.get("hub"), report.get("run")
    if hub:
        yield "hub", f"{hub.get('repo')} at {str(hub.get('revision'))[:12]}"
    if "merged" in report:
        base, adapter = (report["merged"].get(part, {}) for part in ("base", "adapter"))
        yield "merged", f"{base.get('repo', base.get('name'))} with {adapter.get('name')}"
    if run and "progress" in run:
        progress = run["progress"]
        yield "trained", f"{progress['step']:,} steps, {progress['tokens']:,} tokens"


def _tokenizer_rows(tokenizer: Mapping[str, Any] | None) -> Iterable[Row]:
    if not tokenizer:
        yield "tokenizer", "none"
        return
    special = f"{tokenizer['special_count']:,} special"
    yield "tokenizer", f"{tokenizer['file']}, {tokenizer['vocabulary']:,} tokens, {special}"
    for name, token in tokenizer["special_tokens"].items():
        put = " (put before each text)" if name == "bos" and tokenizer["adds_bos"] else ""
        yield f"  {name}", f"{_token(token)}{put}"
    yield "  stop", ", ".join(map(_token, tokenizer["stop"])) or "none"
    yield from _template_rows(tokenizer["chat_template"])


def _token(token: Mapping[str, Any]) -> str:
    return f"{token['text']} {token['id']}" if token["text"] else str(token["id"])


def _template_rows(template: Mapping[str, Any] | None) -> Iterable[Row]:
    if template is None:
        yield "chat template", "none"
    elif template["builtin"]:
        yield "chat template", f"{template['builtin']}, as built in"
    else:
        more = template["lines"] - len(template["begins"])
        yield "chat template", f"its own, {template['lines']} lines:"
        yield from (("", f"  {line[:80]}") for line in template["begins"])
        yield from [("", f"  ... {more} more")] if more > 0 else []


def _dataset_rows(report: Mapping[str, Any]) -> Iterable[Row]:
    files = [f"{name} {rows:,}" for name, rows in report["files"].items()]
    yield "rows", f"{report['rows']:,}" + (f" ({', '.join(files)})" if len(files) > 1 else "")
    yield "form", report["form"] or "not recognised"
    parts = {column: part for part, column in report.get("parts", {}).items()}
    for number, (name, kind) in enumerate(report["columns"].items()):
        role = f", the {parts[name]}" if parts.get(name, name) != name else ""
        yield "" if number else "columns", f"{name} ({kind}{role})"
    for number, (name, value) in enumerate(report["first_row"].items()):
        shown = value if isinstance(value, str) else json.dumps(value, default=str)
        yield "" if number else "first row", f"{name}: {_short(' '.join(shown.split()), 100)}"


def _config_rows(report: Mapping[str, Any]) -> Iterable[Row]:
    if report["about"]:
        yield "about", report["about"]
    given = {key: value for key, value in report["keys"].items() if value is not None}
    yield from ((key, _short(_component(value))) for key, value in given.items())


def _bytes(size: int) -> str:
    value = float(size)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}" if unit != "bytes" else f"{size} bytes"
        value /= 1000
    return f"{value:.2f} GB"


def _short(text: str, limit: int = LONGEST) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"


_ROWS: dict[str, Callable[[Mapping[str, Any]], Iterable[Row]]] = {
    "model": _model_rows,
    "adapter": _adapter_rows,
    "run": _run_rows,
    "tokenizer": _tokenizer_rows,
    "dataset": _dataset_rows,
    "config": _config_rows,
    "safetensors": lambda report: _weight_rows(report["weights"]),
}
