"""What the harness found, as a table, as plain numbers, as its own files, and beside another's."""

import copy
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from torchtune.errors import TuneError

__all__ = ["Difference", "compared", "comparison", "figures", "table", "write"]

Results = dict[str, Any]


def figures(results: Results) -> dict[str, float]:
    """Return the metrics as ``task/metric`` and ``task/metric_stderr``, without what is no number.

    A metric that a task takes through several filters has the filter's name: ``task/metric,filter``.
    """
    found: dict[str, float] = {}
    for task, name, part, value in _metrics(results):
        if isinstance(value, int | float):
            found[f"{task}/{name}" if part == "none" else f"{task}/{name},{part}"] = float(value)
    return found


def table(results: Results) -> str:
    """Return the harness's own table of tasks and, where there are any, of groups."""
    from lm_eval.utils import make_table

    tables = [make_table(results)]
    if "groups" in results:
        tables.append(make_table(results, "groups"))
    return "\n".join(text.rstrip() for text in tables)


def write(results: Results, folder: str | Path, *, samples: bool = False) -> Path:
    """Write the files that the harness's command writes; return the one with the results.

    Args:
        results: Of `evaluate_checkpoint`.
        folder: ``<folder>/<model>/results_<date>.json`` is written.
        samples: Write each question with its answer too, a file a task.

    Raises:
        TuneError: E-EVAL-WRITE: a file cannot be written.
    """
    from lm_eval.utils import handle_non_serializable

    place, day = Path(folder, results["model_name_sanitized"]), datetime.now().isoformat()
    path = place / f"results_{day.replace(':', '-')}.json"
    kept = {name: value for name, value in results.items() if name != "samples"}
    text = json.dumps(kept, indent=2, default=handle_non_serializable, ensure_ascii=False)
    try:
        place.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        for task in results["samples"] if samples else ():
            _write_samples(results, task, path)
    except OSError as error:
        what = f"the results cannot be written: {error.strerror}"
        raise TuneError("E-EVAL-WRITE", what, where=str(place), do="--output-dir DIR") from error
    return path


def _write_samples(results: Results, task: str, beside: Path) -> None:
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(beside.parent.parent))
    tracker.general_config_tracker.model_name_sanitized = beside.parent.name
    tracker.date_id = beside.stem.removeprefix("results_")
    tracker.save_results_samples(task, copy.deepcopy(results["samples"][task]))
    if not (beside.parent / f"samples_{task}_{tracker.date_id}.jsonl").is_file():
        raise OSError(0, f"the samples of {task} are not there")


class Difference(NamedTuple):
    """One metric of two models.

    Args:
        task: The task or group.
        metric: The metric, with its filter where it has one.
        base: Its value for the base.
        base_error: That one's standard error, nan where unknown.
        tuned: Its value for the tuned model.
        tuned_error: That one's standard error.
        error: The standard error of `tuned - base`: where the metric is a mean over items, of the
            differences item by item; else as if the two were independent.
    """

    task: str
    metric: str
    base: float
    base_error: float
    tuned: float
    tuned_error: float
    error: float


def compared(tuned: Results, base: Results) -> list[Difference]:
    """Return each metric that two models were both measured by, on the same documents."""
    others = {(task, metric, part): value for task, metric, part, value in _metrics(base)}
    found = []
    for task, metric, part, given in _metrics(tuned):
        value, other = _number(given), _number(others.get((task, metric, part)))
        if metric.endswith("_stderr") or math.isnan(value) or math.isnan(other):
            continue
        errors = [_error(results, task, metric, part) for results in (base, tuned)]
        items = [_items(results, task, metric, part) for results in (base, tuned)]
        error = math.hypot(*errors)
        if _is_mean(items[0], other) and _is_mean(items[1], value):
            error = _error_in_pairs(*items)
        name = metric if part == "none" else f"{metric},{part}"
        found.append(Difference(task, name, other, errors[0], value, errors[1], error))
    return found


def comparison(differences: Sequence[Difference]) -> str:
    """Return a table of differences, as Markdown."""
    rows = [("Task", "Metric", "Base", "Tuned", "Difference")]
    rows += [
        (
            one.task,
            one.metric,
            _with_error(one.base, one.base_error),
            _with_error(one.tuned, one.tuned_error),
            _with_error(one.tuned - one.base, one.error, sign="+"),
        )
        for one in differences
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["|".join(["", *map(str.ljust, row, widths), ""]) for row in rows]
    rule = "|".join(["", *("-" * width for width in widths), ""])
    return "\n".join([lines[0], rule, *lines[1:]])


def _with_error(value: float, error: float, sign: str = "") -> str:
    shown = f"{value:{sign}.4f}"
    return shown if math.isnan(error) else f"{shown} ± {error:.4f}"


def _metrics(results: Results) -> Iterator[tuple[str, str, str, Any]]:
    """Yield task, metric, filter and value."""
    for task, metrics in results["results"].items():
        for key, value in metrics.items():
            name, comma, part = key.partition(",")
            if comma:
                yield task, name, part, value


def _number(value: Any) -> float:
    """Return a figure, nan for what is none, such as the harness's N/A."""
    return float(value) if isinstance(value, int | float) else math.nan


def _error(results: Results, task: str, metric: str, part: str) -> float:
    found = results["results"][task].get(f"{metric}_stderr,{part}")
    return _number(found)


def _items(results: Results, task: str, metric: str, part: str) -> dict[int, float]:
    """Return the metric of each document, where it is a number."""
    samples = results["samples"].get(task, ())
    mine = [sample for sample in samples if sample["filter"] == part and metric in sample]
    return {s["doc_id"]: float(s[metric]) for s in mine if isinstance(s[metric], int | float)}


def _is_mean(items: dict[int, float], value: float) -> bool:
    return len(items) > 1 and math.isclose(statistics.fmean(items.values()), value, rel_tol=1e-9)


def _error_in_pairs(base: dict[int, float], tuned: dict[int, float]) -> float:
    """Return the standard error of the mean difference: what both find hard does not count."""
    differences = [tuned[document] - base[document] for document in base]
    return statistics.stdev(differences) / math.sqrt(len(differences))
