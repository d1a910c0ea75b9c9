"""Metrics to Weights & Biases; needs the extra `wandb`."""

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from torchtune.errors import MissingError
from torchtune.training import Progress

from torchtune_integrations.result_files import model_files, result_files
from torchtune_integrations.run_id import kept_run_id

__all__ = ["WandbLogger"]


class WandbLogger:
    """Send figures and configuration to one Weights & Biases run, which a resumed run goes on with.

    Steps that it has already are not taken again, so a curve never runs backwards. The command
    line, the terminal's text and code are not sent; the API key is Weights & Biases' own matter
    (``wandb login`` or WANDB_API_KEY), never the config's.

    Args:
        project: Name of the project there.
        entity: User or team; that of the login where not given.
        group: Name under which runs are shown together.
        name: Name of the run; Weights & Biases makes one up where not given.
        mode: ``online``, ``offline`` (kept in `log_dir`, sent later by ``wandb sync``) or
            ``disabled``; the environment's WANDB_MODE, else ``online``, where not given.
        log_files: Send config, environment, metrics, samples and the loss picture at the end.
        log_checkpoint: Send the last checkpoint too, as an artifact of type ``model``.
        log_dir: The folder whose ``wandb/`` holds the run's files; `output_dir` where not given.
        output_dir: The run's folder; the recipe gives it.
        progress: How far the run is; the recipe gives it.

    Raises:
        MissingError: The package wandb is not installed.
    """

    def __init__(
        self,
        project: str = "torchtune",
        entity: str | None = None,
        group: str | None = None,
        name: str | None = None,
        mode: str | None = None,
        log_files: bool = False,
        log_checkpoint: bool = False,
        log_dir: str | None = None,
        output_dir: str = ".",
        progress: Progress | None = None,
    ) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # no telemetry
        try:
            import wandb
        except ImportError as error:
            raise MissingError(
                "E-PACKAGE",
                "the metric logger 'wandb' needs a package that is not installed",
                where="metric_logger",
                do="pip install 'torchtune-integrations[wandb]'",
            ) from error
        folder = Path(log_dir or output_dir)
        self._artifact = wandb.Artifact
        self._files, self._checkpoint, self._folder = log_files, log_checkpoint, Path(output_dir)
        kept = folder / "wandb"
        run_id = kept_run_id(kept / "run_id", progress, lambda: secrets.token_hex(8))
        self._last_step = kept / f"last_step_{run_id}"  # offline, W&B does not know its own steps
        self._last = int(self._last_step.read_text()) if self._last_step.exists() else 0
        self._run = wandb.init(
            project=project,
            entity=entity,
            group=group,
            name=name,
            mode=mode,  # type: ignore[arg-type]
            dir=str(folder),
            id=run_id,
            resume="allow",
            settings=wandb.Settings(console="off", save_code=False, x_disable_meta=True),
        )

    def log_config(self, config: dict[str, Any]) -> None:
        """Show the resolved configuration as the run's; keys that changed on resume are replaced."""
        self._run.config.update(config, allow_val_change=True)

    def log(self, metrics: dict[str, float], progress: Progress) -> None:
        """Send the figures of one step, with its epoch, unless an earlier start has sent it."""
        if progress.step > self._last:
            self._run.log({"epoch": progress.epoch, **metrics}, step=progress.step)
            self._last_step.write_text(str(progress.step), encoding="utf-8")

    def close(self) -> None:
        """Send the files that were asked for and what is left, and end the run."""
        for path in result_files(self._folder) if self._files else []:
            copy = shutil.copy(path, self._run.dir)  # a link would not outlive the run's folder
            self._run.save(copy, base_path=self._run.dir, policy="now")
        if self._checkpoint:
            artifact = self._artifact(f"checkpoint-{self._run.id}", type="model")
            for path in model_files(self._folder):
                artifact.add_file(str(path), policy="immutable", skip_cache=True)
            self._run.log_artifact(artifact)
        self._run.finish()
