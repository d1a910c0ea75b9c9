"""Metrics to MLflow; needs the extra `mlflow`."""

import atexit
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchtune.errors import ConfigError, MissingError
from torchtune.training import Progress

from torchtune_integrations.result_files import model_files, result_files
from torchtune_integrations.run_id import kept_run_id

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

__all__ = ["MlflowLogger"]

LONGEST_NAME, LONGEST_VALUE, PARAMS_AT_ONCE = 250, 6000, 100  # MLflow's limits
NOT_IN_A_NAME = re.compile(r"[^\w./ -]")
SET_UNLESS_GIVEN = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # of 7, which wait 4 minutes for an absent server
}


class MlflowLogger:
    """Send figures and configuration to one MLflow run, which a resumed run goes on with.

    The configuration is flattened into parameters (``optimizer.lr``). MLflow's parameters never
    change, so what differs on a resume becomes a tag ``resumed.<key>``. Steps that the run has
    already are not sent again. A run that breaks off is marked as failed.

    Args:
        experiment: Name of the experiment, made where absent.
        run_name: Name of the run; MLflow makes one up where not given.
        tracking_uri: A server or database; the environment's MLFLOW_TRACKING_URI, else the file
            ``mlruns/mlflow.db`` in `output_dir`, where not given. A user name and password belong into
            MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD and are refused here.
        log_files: Send config, environment, metrics, samples and the loss picture at the end.
        log_checkpoint: Send the last checkpoint too, under ``checkpoint``.
        output_dir: The run's folder; the recipe gives it.
        progress: How far the run is; the recipe gives it.

    Raises:
        ConfigError: `tracking_uri` holds a password.
        MissingError: MLflow is not installed.
    """

    def __init__(
        self,
        experiment: str = "torchtune",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        log_files: bool = False,
        log_checkpoint: bool = False,
        output_dir: str = ".",
        progress: Progress | None = None,
    ) -> None:
        self._files, self._checkpoint = log_files, log_checkpoint
        self._folder = Path(output_dir).absolute()
        self._client, artifacts = self._connect(tracking_uri)
        file = self._folder / "mlruns" / "run_id"
        self._id = kept_run_id(file, progress, lambda: self._start(experiment, run_name, artifacts))
        self._client.update_run(self._id, status="RUNNING")
        self._last = self._last_step() if progress and progress.step else 0
        atexit.register(self._break_off)

    def _connect(self, uri: str | None) -> tuple["MlflowClient", str | None]:
        """Return the client, and where a database in the run's folder keeps its files."""
        if uri and re.search(r"://[^/@]*:[^/@]*@", uri):
            raise ConfigError(
                "E-CONFIG-SECRET", "the tracking URI holds a password, and a config is no place for it",
                where="metric_logger.tracking_uri",
                do="use MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI",
            )  # fmt: skip
        for name, value in SET_UNLESS_GIVEN.items():
            os.environ.setdefault(name, value)
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise MissingError(
                "E-PACKAGE",
                "the metric logger 'mlflow' needs a package that is not installed",
                where="metric_logger",
                do="pip install 'torchtune-integrations[mlflow]'",
            ) from error
        for noisy in ("mlflow.store.db.utils", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
        if uri:
            return MlflowClient(tracking_uri=uri), None
        folder = self._folder / "mlruns"
        folder.mkdir(parents=True, exist_ok=True)
        return MlflowClient(f"sqlite:///{folder}/mlflow.db"), (folder / "artifacts").as_uri()

    def _start(self, experiment: str, run_name: str | None, artifacts: str | None) -> str:
        """Make a run, and its experiment where there is none; return the run's id."""
        found = self._client.get_experiment_by_name(experiment)
        number = (
            found.experiment_id
            if found
            else self._client.create_experiment(experiment, artifact_location=artifacts)
        )
        return str(self._client.create_run(number, run_name=run_name).info.run_id)

    def _last_step(self) -> int:
        names = self._client.get_run(self._id).data.metrics
        points = (self._client.get_metric_history(self._id, name) for name in names)
        return max((point.step for curve in points for point in curve), default=0)

    def log_config(self, config: dict[str, Any]) -> None:
        """Show the configuration as parameters; what changed since an earlier start as tags."""
        from mlflow.entities import Param, RunTag

        there = self._client.get_run(self._id).data.params
        flat = dict(_flat(config))
        new = [Param(name, text) for name, text in flat.items() if name not in there]
        changed = {name: text for name, text in flat.items() if there.get(name, text) != text}
        tags = [RunTag(f"resumed.{name}"[:LONGEST_NAME], text) for name, text in changed.items()]
        for start in range(0, max(len(new), len(tags)), PARAMS_AT_ONCE):
            part = slice(start, start + PARAMS_AT_ONCE)
            self._client.log_batch(self._id, params=new[part], tags=tags[part])

    def log(self, metrics: dict[str, float], progress: Progress) -> None:
        """Send the figures of one step, with its epoch."""
        from mlflow.entities import Metric

        if progress.step <= self._last:
            return
        now, step = int(time.time() * 1000), progress.step
        figures = {"epoch": float(progress.epoch), **metrics}
        points = [Metric(_name(name), value, now, step) for name, value in figures.items()]
        self._client.log_batch(self._id, metrics=points)

    def close(self) -> None:
        """Send the files that were asked for, and end the run."""
        for path in result_files(self._folder) if self._files else []:
            self._client.log_artifact(self._id, str(path))
        for path in model_files(self._folder) if self._checkpoint else []:
            self._client.log_artifact(self._id, str(path), "checkpoint")
        self._client.set_terminated(self._id, "FINISHED")
        atexit.unregister(self._break_off)

    def _break_off(self) -> None:
        with suppress(Exception):  # Python is leaving: there is nobody to be told
            self._client.set_terminated(self._id, "FAILED")


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested mappings and lists as parameters within MLflow's limits."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _flat(item, f"{key}.{index}")
    else:
        yield _name(key), str(value)[:LONGEST_VALUE]


def _name(name: str) -> str:
    return NOT_IN_A_NAME.sub("_", name)[:LONGEST_NAME]
