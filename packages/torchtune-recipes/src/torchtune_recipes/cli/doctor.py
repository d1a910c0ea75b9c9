"""Look at this machine and try a tiny run; text to paste into a bug report.

No token, no value of an environment variable and no path of yours is printed. Exits 1 if the
self-test fails, 3 if something that is needed is missing.
"""

import argparse
import json

__all__ = ["add_arguments", "run"]

EXAMPLES = """\
examples:
  tune doctor
  tune doctor --json > report.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``tune doctor``."""
    parser.epilog = EXAMPLES
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the report and the verdict."""
    import sys

    from torchtune_recipes.diagnosis import diagnose, without_names

    report, missing, failed = diagnose()
    verdict = _verdict(missing, failed)
    if args.json:
        facts = {**report, "missing": missing, "failed": failed, "verdict": verdict}
        print(without_names(json.dumps(facts, indent=2)))
    else:
        print(without_names(_text(report, [*missing, *failed], verdict)))
    if not missing and not failed:
        print("next: tune ls shows what can be run", file=sys.stderr)
    return 3 if missing else 1 if failed else 0


def _verdict(missing: list[str], failed: list[str]) -> str:
    if missing:
        return "something that is needed is missing"
    return "the self-test fails" if failed else "all that is needed is there, and works"


def _text(report: dict[str, dict[str, str]], faults: list[str], verdict: str) -> str:
    lines = []
    wide = max(len(name) for facts in report.values() for name in facts) + 2
    for section, facts in report.items():
        lines += [section, *(f"  {name:<{wide}}{value}" for name, value in facts.items()), ""]
    lines += [f"verdict: {verdict}", *(f"  {fault}" for fault in faults)]
    return "\n".join(lines)
