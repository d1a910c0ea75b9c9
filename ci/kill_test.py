"""Kill runs with SIGKILL at random moments, resume them, and compare with runs left alone.

    python ci/kill_test.py --kills 1000

Each kill ends every process of a run at once, at a moment drawn evenly over its time or, every
other one, while a checkpoint is being written. A run takes up to five kills, is resumed after each
with ``resume_from_checkpoint=auto``, and must end with the losses and the bytes of the run that was
never killed. After each kill the newest checkpoint published before must still be whole.

Runs start as forks of a process that has torch loaded, which saves two seconds a kill; ``--cold``
starts each with ``tune run`` instead.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

from killed_runs import FORMS, Outcome, Plan, Whole, killed_run, leave_alone, load, prepare

KILLS_PER_RUN = 5


def main() -> int:
    """Kill as often as the command line says; return 1 if anything was lost or differs."""
    args = _arguments()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path(args.folder or tempfile.mkdtemp(prefix="kill_test_"))
    folder.mkdir(parents=True, exist_ok=True)
    fork = get_context("fork")  # of a process that has loaded nothing
    first = fork.Process(target=prepare, args=(folder,))
    first.start()
    first.join()
    plan, forms = Plan(folder, args.seed, args.cold), args.form or list(FORMS)
    print(f"seed {args.seed}, in {folder}", flush=True)
    began = time.monotonic()
    with ProcessPoolExecutor(args.jobs, fork, initializer=load) as workers:
        alone = {form: workers.submit(leave_alone, plan, form) for form in forms}
        whole = {form: future.result() for form, future in alone.items()}
        outcomes = list(_killed(workers, plan, whole, args))
    _summary(outcomes, time.monotonic() - began)
    bad = any(outcome.lost or outcome.differing for outcome in outcomes)
    if not bad and not args.folder:
        shutil.rmtree(folder)
    return int(bad)


def _killed(
    workers: ProcessPoolExecutor, plan: Plan, whole: dict[str, Whole], args: argparse.Namespace
) -> Iterator[Outcome]:
    """Start runs of all forms in turn until there were `kills`; yield each run as it ends."""
    running: dict[Future[Outcome], int] = {}
    number, done, kills = 0, 0, args.kills
    side_by_side = args.jobs + 1  # so that no worker waits for this process
    while True:
        while (asked := done + sum(running.values())) < kills and len(running) < side_by_side:
            form = list(whole)[number % len(whole)]
            most = min(KILLS_PER_RUN, kills - asked)
            future = workers.submit(killed_run, plan, form, whole[form], number, most)
            running[future] = most
            number += 1
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            del running[future]
            outcome = future.result()
            done += outcome.kills
            _tell(outcome, done, kills)
            yield outcome


def _tell(outcome: Outcome, done: int, kills: int) -> None:
    faults = [*outcome.lost, *outcome.differing]
    said = f"run {outcome.number} {outcome.form}: {outcome.kills} kills, {outcome.saving} saving"
    print(f"[{done}/{kills}] {said}, {outcome.seconds:.1f} s", "; ".join(faults), flush=True)


def _summary(outcomes: list[Outcome], seconds: float) -> None:
    kills = sum(outcome.kills for outcome in outcomes)
    saving = sum(outcome.saving for outcome in outcomes)
    lost = sum(len(outcome.lost) for outcome in outcomes)
    differing = sum(bool(outcome.differing) for outcome in outcomes)
    print(
        f"{kills} kills in {len(outcomes)} runs, {saving} of them while saving: "
        f"{lost} lost, {differing} differing ({seconds / 60:.1f} minutes)"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="in all (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument(
        "--form", action="append", choices=FORMS, help="one of them; by default all"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side")
    parser.add_argument("--cold", action="store_true", help="start each run with `tune run`")
    parser.add_argument("--folder", help="work here, and leave all there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
