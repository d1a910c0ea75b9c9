"""Whether a run that goes on is still the same run."""

import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from torchtune.config.names import nearest, split_names
from torchtune.config.resolved import resolve, resolved
from torchtune.config.schema import keys_of
from torchtune.config.signature import COMPONENT
from torchtune.errors import ConfigError
from torchtune.models import config_digest

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

    from torchtune.distributed import World

__all__ = ["Resumed", "check_same_run", "replay_schedule", "run_conditions"]

# Every key that stands in none of these three tables binds the run, a new one too.
FREE = frozenset(
    {
        *("output_dir", "resume_from_checkpoint", "allow_change", "rehearse", "num_workers"),
        *("save_every_n_steps", "save_every_minutes", "save_in_background"),
        *("keep_last_n_checkpoints", "keep_best", "epochs", "max_steps"),
        *("dataset_val", "batch_size_val", "run_val_every_n_steps", "patience"),
        *("sample_prompts", "evaluate", "metric_logger", "log_every_n_steps", "profiler"),
        "timeout_minutes",
    }
)
"""Keys that change nothing of what is trained, or only how long."""

ROUNDING = frozenset(
    {
        *("device", "deterministic", "parallel", "compile"),
        *("enable_activation_checkpointing", "enable_activation_offloading"),
        *("activation_checkpointing_mode", "optimizer_in_bwd"),
        *("fsdp_cpu_offload", "fsdp_reshard_after_forward"),
        *("batch_size", "gradient_accumulation_steps"),  # the rows of a step bind, see below
    }
)
"""Keys that change the order of additions: the run goes on, equal to rounding."""

FOLLOWS = {
    "data_sha256": ("dataset", "validation_split", "max_seq_len", "tokenizer", "chat_template"),
    "base_sha256": ("checkpoint",),
    "config_sha256": ("checkpoint",),
    "packed_tokens": ("batch_size", "max_seq_len", "packed"),
    "rows_per_step": ("batch_size", "gradient_accumulation_steps", "packed"),
    "packed_micro_batches_per_step": ("gradient_accumulation_steps", "packed"),
}
"""What is compared in the place of keys, and those keys: a file may lie elsewhere now."""

SHOWN = {
    "data_sha256": "tokens of sha256 {:.8}",
    "base_sha256": "weights of sha256 {:.8}",
    "config_sha256": "a config.json of sha256 {:.8}",
    "packed_tokens": "{} tokens a micro-batch",
    "rows_per_step": "{} rows a step over all processes",
    "packed_micro_batches_per_step": "{} micro-batches a step over all processes",
}

SETTINGS = ("optimizer", "param_groups", "lr_scheduler", "dtype", "master_weights")
"""Keys that what lies in the training state hangs on."""

OTHER_WEIGHTS = ("peft", "peft.rank", "peft.targets")
"""Keys with another value of which there are other weights than were saved."""

ABSENT = object()


class Resumed(NamedTuple):
    """What differs from the run that is gone on with, where that is no fault.

    Args:
        notes: To be told to the user.
        new_settings: Whether the optimizer's and the schedule's numbers must come from the config,
            and not from the checkpoint: `torchtune.checkpoint.load_training_state`, and
            `replay_schedule`.
    """

    notes: list[str]
    new_settings: bool


class Change(NamedTuple):
    """A value that was another when the checkpoint was saved."""

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} (was {_shown(self.was)}, is {_shown(self.now)})"


def run_conditions(
    params: object,
    *,
    rows: Mapping[str, Any],
    model: Mapping[str, Any],
    base_sha256: str | None,
    total_steps: int,
    world: "World",
) -> dict[str, Any]:
    """Return what makes a run this run and no other, for the checkpoint; plain values.

    Args:
        params: The recipe's Params: all but what is free to change is kept, by dotted key.
        rows: What the rows of each step follow from: `torchtune.data.Steps.identity`.
        model: What a config.json says of the model (`Decoder.hf_config`); the base's may have been
            edited, and its weights be the same.
        base_sha256: Of the weights that the run began with; None where it drew them.
        total_steps: Optimizer steps of the whole run, which schedules stretch to.
        world: The processes.
    """
    facts = {name: rows[name] for name in FOLLOWS if name in rows}
    facts |= {"base_sha256": base_sha256, "config_sha256": config_digest(model)}
    machine = {
        "world_size": world.size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
    }
    if world.device.type == "cuda":
        machine["processor"] = torch.cuda.get_device_name(world.device)
    kept = {key: value for key, value in _leaves(resolved(params)) if _first(key) not in FREE}
    return {"keys": kept, "facts": facts, "machine": machine, "total_steps": total_steps}


def check_same_run(
    saved: Mapping[str, Any] | None, now: Mapping[str, Any], params: object
) -> Resumed:
    """Refuse to go on with what would be another run; return what else differs.

    Whatever `params.allow_change` names may differ: keys, or dotted arguments such as
    ``optimizer.lr``.

    Args:
        saved: The `run_conditions` that the checkpoint was written under, if it holds any.
        now: Those of this run.
        params: The recipe's Params.

    Raises:
        ConfigError: E-RESUME-CHANGED names every key with what it was and is; `peft`, its rank and
            its targets also where they are allowed, as other weights were saved. E-CONFIG-KEY: an
            allowed name is no key.
    """
    allowed = split_names(getattr(params, "allow_change", None))
    if not saved:
        new = any(_first(name) in SETTINGS for name in allowed)
        return Resumed(["the checkpoint does not say what it was trained with"], new)
    was, is_now = _with_defaults(saved["keys"], now["keys"], params), now["keys"]
    _check_names(allowed, {key for key, _ in _leaves(resolved(params))} | was.keys())
    changes = _changes(was, is_now, saved["facts"], now["facts"])
    refused = [c for c in changes if c.key in OTHER_WEIGHTS or not _covers(allowed, c.key)]
    if refused:
        raise _refusal(refused)
    notes = [f"{change}, as allow_change says" for change in changes]
    longer = saved["total_steps"] != now["total_steps"] and now["keys"].get("lr_scheduler")
    if longer:
        steps = f"{saved['total_steps']:,} steps and has {now['total_steps']:,}"
        notes.append(f"the run had {steps}: the schedule follows from here on")
    notes += _rounding(was, is_now, saved["machine"], now["machine"])
    new = any(_first(change.key) in SETTINGS for change in changes)
    return Resumed(notes, new or bool(longer))


def replay_schedule(scheduler: "LRScheduler | None", step: int) -> None:
    """Bring a fresh schedule to where it is after `step` optimizer steps.

    Args:
        scheduler: One that has taken no step; None is left alone.
        step: Optimizer steps done.
    """
    if scheduler is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch misses the optimizer's steps in between
        for _ in range(step):
            scheduler.step()


def _changes(
    was: Mapping[str, Any],
    now: Mapping[str, Any],
    facts_then: Mapping[str, Any],
    facts_now: Mapping[str, Any],
) -> list[Change]:
    """Return what binds the run and differs, each key once."""
    stand_ins = {key for keys in FOLLOWS.values() for key in keys} - {"packed"}
    differ = _differences(was, now)
    found = [c for c in differ if _first(c.key) not in stand_ins | ROUNDING]
    for fact in FOLLOWS:
        if facts_then.get(fact) != facts_now.get(fact):
            found += _causes(fact, differ, facts_then.get(fact), facts_now.get(fact))
    return list({change.key: change for change in reversed(found)}.values())[::-1]


def _causes(fact: str, differ: Collection[Change], was: Any, now: Any) -> list[Change]:
    """Return the keys that made a fact another, or the fact under the name of its first key."""
    causes = [change for change in differ if _first(change.key) in FOLLOWS[fact]]
    packed = [change for change in causes if change.key == "packed"]  # changes what is counted
    if packed or (causes and fact.endswith("sha256")):
        return packed or causes
    key = causes[0].key if causes else FOLLOWS[fact][0]
    return [Change(key, SHOWN[fact].format(str(was)), SHOWN[fact].format(str(now)))]


def _differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Return the keys that differ; of a component that is another one, its name alone."""
    found = list[Change]()
    for key in dict.fromkeys([*was, *now]):
        before, after = was.get(key, ABSENT), now.get(key, ABSENT)
        replaced = any(key.startswith(f"{change.key}.") for change in found)
        if before != after and not replaced:
            found.append(Change(key, before, after))
    return found


def _with_defaults(
    was: Mapping[str, Any], now: Mapping[str, Any], params: object
) -> dict[str, Any]:
    """Add to what was saved the keys and arguments that did not exist then, as not given."""
    keys, filled = keys_of(type(params)), dict(was)
    unset = {name: key.default for name, key in keys.items() if not key.required}
    bare = {
        name: {COMPONENT: was[name]}
        for name, key in keys.items()
        if key.slot and was.get(name) is not None and was[name] == now.get(name)
    }
    saved_keys = {_first(key) for key in was}
    for key, value in [*_leaves(resolve(bare, keys)), *_leaves(resolve(unset, keys))]:
        if key in now and (_first(key) in bare or _first(key) not in saved_keys):
            filled.setdefault(key, value)
    return {key: value for key, value in filled.items() if _first(key) in keys}


def _rounding(
    was: Mapping[str, Any],
    now: Mapping[str, Any],
    machine_then: Mapping[str, Any],
    machine_now: Mapping[str, Any],
) -> list[str]:
    keys = [change for change in _differences(was, now) if _first(change.key) in ROUNDING]
    differ = [str(change) for change in [*keys, *_differences(machine_then, machine_now)]]
    end = "what follows is equal to rounding, not to the bit"
    return [f"{', '.join(differ)}: {end}"] if differ else []


def _refusal(changes: Collection[Change]) -> ConfigError:
    keys = ",".join(change.key for change in changes)
    do = f"undo that, or go on with the new values: --allow-change {keys}"
    if any(change.key in OTHER_WEIGHTS for change in changes):
        do = "other weights were saved than it would train: undo that, or begin a new run with "
        do += "--checkpoint a step folder (of an adapter what `tune merge` makes of it)"
    return ConfigError(
        "E-RESUME-CHANGED",
        f"this would be another run than the checkpoint's: {', '.join(map(str, changes))}",
        where="resume_from_checkpoint",
        do=do,
    )


def _check_names(allowed: Collection[str], known: Collection[str]) -> None:
    for name in allowed:
        if not any(key == name or key.startswith(f"{name}.") for key in known):
            what = f"there is no key {name!r}"
            do = nearest(name, known)
            raise ConfigError("E-CONFIG-KEY", what, where="allow_change", do=do)


def _covers(allowed: Collection[str], key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in allowed)


def _first(key: str) -> str:
    return key.partition(".")[0]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and plain values; the value of a component is its name."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if not isinstance(value, Mapping):
            yield key, value
            continue
        if COMPONENT in value:
            yield key, value[COMPONENT]
        yield from _leaves({k: v for k, v in value.items() if k != COMPONENT}, f"{key}.")


def _shown(value: Any) -> str:
    if value is ABSENT:
        return "not set"
    text = {None: "null", True: "true", False: "false"}.get(value) if _is_word(value) else None
    text = text or str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)
