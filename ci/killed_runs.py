"""Runs that are killed and resumed, and what became of them; `kill_test.py` starts them."""

import importlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

STEPS = 16
COMMON = (
    f"max_steps={STEPS}", "save_every_n_steps=2", "keep_last_n_checkpoints=2", "batch_size=2",
    "max_seq_len=96", "device=cpu", "optimizer.lr=1e-3", "lr_scheduler=cosine",
    "lr_scheduler.num_warmup_steps=4", "clip_grad_norm=1.0", "resume_from_checkpoint=auto",
)  # fmt: skip
KINDS = {
    "full": ("dtype=fp32",),
    "lora": ("dtype=fp32", "peft=lora", "peft.dropout=0.1"),
    "packed": (
        "dtype=fp32", "packed=true", "validation_split=0.1", "run_val_every_n_steps=3",
        "keep_best=true",
    ),
    "master": ("dtype=bf16", "master_weights=true"),
}  # fmt: skip
FORMS = {
    f"{kind}-{processes}{where}": (processes, (*arguments, *saving))
    for where, saving in (("", ()), ("-background", ("save_in_background=true",)))
    for kind, arguments in KINDS.items()
    for processes in (1, 2)
}
"""What is killed, by name: processes, and arguments."""

SAME = ("step", "epoch", "loss", "val_loss", "grad_norm", "lr", "tokens", "supervised_tokens")
LONGEST_SECONDS = 300
PARTS = (
    "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor", "tokenizers", "jinja2",
    "matplotlib.figure", "matplotlib.backends.backend_agg", "filelock", "torchtune.generation",
    "torchtune.peft", "torchtune.training", "torchtune_recipes.cli.main",
)  # fmt: skip
"""What a run imports."""


@dataclass
class Outcome:
    """What became of one run.

    Args:
        form: Which of `FORMS`.
        number: Of the run.
        kills: How often it was killed.
        saving: How many of these kills left a half-written checkpoint.
        lost: What was lost, one text a case.
        differing: What was other than in the run left alone.
        seconds: From its first start to its end.
    """

    form: str
    number: int = 0
    kills: int = 0
    saving: int = 0
    lost: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Where runs happen and how they start; the same for all.

    Args:
        folder: Holds the model, the rows, and every run.
        seed: Of the moments.
        cold: Start with ``tune run``.
    """

    folder: Path
    seed: int
    cold: bool

    def command(self, form: str, output: Path) -> list[str]:
        """Return the words after ``tune run``, without the number of processes."""
        rows = f"dataset={self.folder / 'alpaca.jsonl'}"
        places = (f"checkpoint={self.folder / 'model'}", rows, f"output_dir={output}")
        return ["sft", *places, *COMMON, *FORMS[form][1]]


class Attempt:
    """The processes of one start of a run.

    Args:
        plan: Where and how.
        form: Which of `FORMS`.
        output: The run's output folder; what the processes say goes beside it, into a .log.
    """

    def __init__(self, plan: Plan, form: str, output: Path) -> None:
        self.log = output.with_suffix(".log")
        self.started, self.born = time.monotonic(), time.time()
        words, processes = plan.command(form, output), FORMS[form][0]
        if plan.cold:
            launch = ["--nproc_per_node", str(processes)] if processes > 1 else []
            self.pids = [_start(["run", *launch, *words], self.log)]
        else:
            ranks = _rank_variables(processes)
            self.pids = [_fork(["run", *words], variables, self.log) for variables in ranks]
        self.codes: dict[int, int] = {}

    def ended(self) -> bool:
        """Say whether every process has ended by itself, or one has failed."""
        for pid in self.pids:
            if pid not in self.codes and (status := os.waitpid(pid, os.WNOHANG))[0]:
                self.codes[pid] = os.waitstatus_to_exitcode(status[1])
        return len(self.codes) == len(self.pids) or any(self.codes.values())

    def kill(self) -> None:
        """Kill all processes and those that they started."""
        living = [pid for pid in self.pids if pid not in self.codes]
        for pid in [pid for root in living for pid in (root, *processes_below(root))]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in living:
            os.waitpid(pid, 0)

    def said(self) -> str:
        """Return all that its processes printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def _start(words: list[str], log: Path) -> int:
    """Start ``tune`` as a user does."""
    tune = str(Path(sys.executable).with_name("tune"))
    with log.open("w") as said:
        return subprocess.Popen([tune, *words], stdout=said, stderr=said).pid


def _fork(words: list[str], variables: dict[str, str], log: Path) -> int:
    """Start ``tune`` in a copy of this process, which has loaded torch and computed nothing."""
    if pid := os.fork():
        return pid
    code: object = 1
    try:
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.environ.update(variables)
        from torchtune_recipes.cli.main import main

        code = main(words)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def _rank_variables(processes: int) -> list[dict[str, str]]:
    """Return what torchrun tells each process; nothing where there is one."""
    if processes == 1:
        return [{}]
    size, port = str(processes), str(free_port())
    shared = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"}
    ranks = map(str, range(processes))
    return [{**shared, "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank} for rank in ranks]


def free_port() -> int:
    """Return a port that is free, and that the system gives to nobody who asks for any."""
    while True:
        port = random.SystemRandom().randrange(15_000, 30_000)  # Linux gives those from 32768 on
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port


def processes_below(root: int) -> Iterator[int]:
    """Yield the processes that `root` has started, and those that these have."""
    for listed in Path(f"/proc/{root}/task").glob("*/children"):
        with suppress(OSError):
            for pid in map(int, listed.read_text().split()):
                yield pid
                yield from processes_below(pid)


@dataclass(frozen=True)
class Whole:
    """A run that was left alone.

    Args:
        metrics: Its lines of metrics.jsonl, without times.
        files: The files of its last step folder.
        setup_seconds: Until its first step was logged.
        seconds: Until it ended.
        save_seconds: Of one save.
    """

    metrics: list[dict[str, float]]
    files: dict[str, bytes]
    setup_seconds: float
    seconds: float
    save_seconds: float


def leave_alone(plan: Plan, form: str) -> Whole:
    """Run a form to its end, watching how long its parts take."""
    output = plan.folder / f"{form}_whole"
    attempt, setup, saving = Attempt(plan, form, output), 0.0, 0.0
    before = time.monotonic()
    while not attempt.ended():
        time.sleep(0.001)
        now = time.monotonic()
        saving += (now - before) * bool(_half_written(output))
        before = now
        if not setup and (output / "metrics.jsonl").exists():
            setup = now - attempt.started
    seconds = time.monotonic() - attempt.started
    if any(attempt.codes.values()):
        raise SystemExit(f"{form} fails without any kill:\n{attempt.said()}")
    metrics, files = results(output)
    return Whole(metrics, files, setup, seconds, saving / (STEPS // 2))


def results(output: Path) -> tuple[list[dict[str, float]], dict[str, bytes]]:
    """Return the figures that a run logged, and the files of its last step folder."""
    lines = (output / "metrics.jsonl").read_text().splitlines()
    figures = [{key: line[key] for key in SAME if key in line} for line in map(json.loads, lines)]
    step = (output / "latest").resolve()
    files = [path for path in step.rglob("*") if path.is_file()]
    return figures, {str(path.relative_to(step)): _bytes(path) for path in files}


def _bytes(path: Path) -> bytes:
    """Return a file's bytes; of a manifest without who started the processes, which differs."""
    if path.name != "manifest.json":
        return path.read_bytes()
    return json.dumps({**json.loads(path.read_text()), "launchers": []}).encode()


def _half_written(output: Path) -> list[str]:
    """Return the step folders that are being written, or were when the run was killed."""
    try:
        return [name for name in os.listdir(output) if name.startswith(".step_")]  # noqa: PTH208
    except FileNotFoundError:
        return []


def killed_run(plan: Plan, form: str, whole: Whole, number: int, kills: int) -> Outcome:
    """Run a form with up to `kills` kills, and compare it with the `whole` one."""
    outcome, began = Outcome(form, number), time.monotonic()
    chance = random.Random(f"{plan.seed}/{form}/{number}")
    output = plan.folder / f"{form}_{number}"
    for step in sorted(chance.uniform(0, STEPS) for _ in range(kills)):
        attempt = Attempt(plan, form, output)
        if not _lives_until(attempt, output, whole, step, chance):
            break
        _kill(attempt, output, outcome)
    else:
        attempt = Attempt(plan, form, output)
    _judge(attempt, output, whole, outcome)
    outcome.seconds = time.monotonic() - began
    if not outcome.lost and not outcome.differing:
        shutil.rmtree(output)
    return outcome


def _judge(attempt: Attempt, output: Path, whole: Whole, outcome: Outcome) -> None:
    """Let the last attempt end, and compare what it leaves."""
    while not (ended := attempt.ended()):
        time.sleep(0.005)
        if time.monotonic() - attempt.started > LONGEST_SECONDS:
            break
    if ended and not any(attempt.codes.values()):
        outcome.differing += _differences(results(output), whole)
        return
    attempt.kill()
    what = "does not go on" if ended else "hangs"
    outcome.lost.append(f"{what}: {attempt.said()[-500:]}")


def _lives_until(
    attempt: Attempt, output: Path, whole: Whole, step: float, chance: random.Random
) -> bool:
    """Wait until the run is in `step`; False where it ended before.

    Now and then the moment comes before the first step, and half of the others in a save.
    """
    starting = chance.random() < whole.setup_seconds / whole.seconds
    in_save = not starting and chance.random() < 0.5
    longest = whole.save_seconds if in_save else (whole.seconds - whole.setup_seconds) / STEPS
    offset = chance.random() * (whole.setup_seconds if starting else longest)
    reached = attempt.started if starting else None
    while not attempt.ended():
        if reached is None and _logged(output, attempt) >= int(step):
            reached = time.monotonic() if not in_save or _half_written(output) else None
        if reached is not None and time.monotonic() - reached >= offset:
            return True
        time.sleep(0.0005)
    return False


def _logged(output: Path, attempt: Attempt) -> int:
    """Return how many steps the run has logged; -1 before the attempt has touched the file."""
    path = output / "metrics.jsonl"
    try:
        if path.stat().st_mtime < attempt.born:
            return -1  # there are lines in it that the run will cut
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return -1


def _kill(attempt: Attempt, output: Path, outcome: Outcome) -> None:
    """Kill the run and look at what it leaves."""
    from torchtune.checkpoint import damaged_files, latest_step

    published = _step(output)
    attempt.kill()
    outcome.kills += 1
    outcome.saving += bool(_half_written(output))
    newest = latest_step(output) if output.exists() else None
    found = int(newest.name.removeprefix("step_")) if newest else 0
    if found < published:
        outcome.lost.append(f"kill {outcome.kills}: step {published} is gone, {found} is there")
    elif newest and (damaged := damaged_files(newest)):
        outcome.lost.append(f"kill {outcome.kills}: step {found} has damaged {damaged}")


def _step(output: Path) -> int:
    """Return the step that ``latest`` names, 0 where there is none."""
    try:
        return int((output / "latest").readlink().name.removeprefix("step_"))
    except FileNotFoundError:
        return 0


def _differences(found: tuple[list[dict[str, float]], dict[str, bytes]], whole: Whole) -> list[str]:
    metrics, files = found
    lines = range(max(len(metrics), len(whole.metrics)))
    steps = [str(i + 1) for i in lines if metrics[i : i + 1] != whole.metrics[i : i + 1]]
    names = sorted(
        name for name in {*files, *whole.files} if files.get(name) != whole.files.get(name)
    )
    told = [f"figures of steps {', '.join(steps)}"] if steps else []
    return told + [f"the bytes of {name}" for name in names]


def prepare(folder: Path) -> None:
    """Write the model and the rows that all runs use."""
    from torchtune.testing import tiny_checkpoint, tiny_rows

    tiny_checkpoint(folder / "model")
    tiny_rows(folder, 100)


def load() -> None:
    """Load what every run needs, without computing anything."""
    for module in PARTS:
        importlib.import_module(module)
