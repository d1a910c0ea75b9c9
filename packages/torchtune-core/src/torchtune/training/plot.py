"""A picture of the loss."""

import json
from pathlib import Path

__all__ = ["plot_loss"]


def plot_loss(metrics: str | Path, picture: str | Path) -> None:
    """Draw the losses of a `metrics.jsonl` over steps, with a running mean, into a PNG.

    Args:
        metrics: The file; lines without a loss are passed over.
        picture: Where the PNG goes.
    """
    import matplotlib  # half a second to import

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in Path(metrics).read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    train = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    held_out = [(line["step"], line["val_loss"]) for line in lines if "val_loss" in line]
    if train:
        steps, losses = zip(*train, strict=True)
        axes.plot(steps, losses, color="#9bb8d3", linewidth=1, label="training")
        axes.plot(steps, _running_mean(losses), color="#1f4e79", linewidth=2, label="running mean")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color="#c8553d", marker="o", label="validation")
    axes.set(xlabel="step", ylabel="loss (nats per supervised token)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if train or held_out:
        axes.legend(frameon=False)
    figure.savefig(str(picture))


def _running_mean(values: tuple[float, ...], keep: float = 0.9) -> list[float]:
    """Return an exponential mean, unbiased at the start."""
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(mean / weight)
    return out
