"""Render a chat template that nobody vouches for: sandboxed, and limited in what it may print.

This file imports only the standard library and jinja2, and runs as a script too: `trial` renders in
a child process first, for what cannot be stopped from within (a template such as
``{{ 10 ** 10 ** 10 }}`` never comes back, not even from being compiled).
The environment is that of transformers' ``apply_chat_template``, so that templates mean the same.
"""

import contextlib
import datetime
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["FAULTS", "Refused", "Unruly", "compiled", "marked_spans", "render", "trial"]

MAX_ROUNDS = 200_000  # of all loops of one rendering; a chat of 1,000 turns takes a few thousand
MAX_CHARACTERS = 4_000_000  # printed beyond a multiple of what went in
TRIAL_SECONDS = 60.0  # on a busy machine; a trial takes 0.1 s on an idle one
TRIAL_CPU_SECONDS = 3
TRIAL_BYTES = 1 << 30
MARKS = ("\ufdd0", "\ufdd1")  # noncharacters, which no text has

# What a template may raise: jinja's own errors, and Python's for an operation that fails.
FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class Unruly(jinja2.TemplateError):
    """The template loops or prints without end."""


class Refused(jinja2.TemplateError):
    """The template called ``raise_exception``: it does not want these messages."""


class Generation(jinja2.ext.Extension):
    """The tag ``{% generation %}``: what the model writes lies between two marks in the output."""

    tags = {"generation"}  # noqa: RUF012 - jinja declares it so

    def parse(self, parser: Any) -> nodes.Node:
        """Return the node of a block that passes its text to `_mark`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        return f"{MARKS[0]}{caller()}{MARKS[1]}"


class Rounds(jinja2.ext.Extension):
    """Counts the rounds of all loops, and the calls of macros, of one rendering."""

    left = MAX_ROUNDS

    def limit(self, template: nodes.Template) -> None:
        """Make each round of a loop and each call of a macro count."""
        for node in template.find_all((nodes.For, nodes.Macro)):
            node.body.insert(0, nodes.ExprStmt(self.call_method("count")))  # type: ignore[attr-defined]

    def count(self) -> None:
        """Count one.

        Raises:
            Unruly: That was one too many.
        """
        self.left -= 1
        if self.left < 0:
            raise Unruly(f"it loops without end (over {MAX_ROUNDS:,} rounds)")


def compiled(source: str, date: str) -> jinja2.Template:
    """Return the template; `date` (ISO, with or without a time) is its ``strftime_now``.

    Raises:
        jinja2.TemplateSyntaxError: It is no jinja template.
    """
    now = datetime.datetime.fromisoformat(date)
    extensions = [Generation, Rounds, "jinja2.ext.loopcontrols"]
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=extensions
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = now.strftime
    tree = environment.parse(source)
    environment.extensions[Rounds.identifier].limit(tree)  # type: ignore[attr-defined]
    return environment.from_string(tree)


def render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """Return the text, with `MARKS` around what lies in ``{% generation %}``.

    Raises:
        Unruly: It loops or prints without end.
        Refused: The template does not want these messages.
        jinja2.TemplateError: Anything else went wrong; see `FAULTS` for the rest.
    """
    rounds: Any = template.environment.extensions[Rounds.identifier]
    rounds.left = MAX_ROUNDS
    parts, size = [], 0
    for part in template.root_render_func(template.new_context(dict(variables))):
        parts.append(part)
        size += len(part)
        if size > MAX_CHARACTERS and size > MAX_CHARACTERS + 16 * _size(variables):
            raise Unruly(f"it prints without end (over {size:,} characters)")
    return "".join(parts)


def marked_spans(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Return `text` without its marks, and the character spans that lay between two of them."""
    plain, spans, starts, size = [], [], [], 0
    at = 0
    for i in _marks_in(text):
        plain.append(text[at:i])
        size += i - at
        at = i + 1
        if text[i] == MARKS[0]:
            starts.append(size)
        elif starts:
            spans.append((starts.pop(), size))
    plain.append(text[at:])
    return "".join(plain), spans


def trial(source: str, cases: Sequence[Mapping[str, Any]], *, date: str) -> str:
    """Compile and render in a child process; return what is wrong with the template, or "".

    That it refuses a case, or stumbles over it, is no fault here: real messages may be others.

    Args:
        source: The template.
        cases: Variables to render it with, JSON.
        date: As for `compiled`.
    """
    given = json.dumps({"source": source, "cases": list(cases), "date": date, "path": sys.path})
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD, __file__],
            input=given.encode(),
            capture_output=True,
            timeout=TRIAL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it does not end (stopped after {TRIAL_SECONDS:g} s)"
    if child.returncode == 0:
        return child.stdout.decode()
    if child.returncode == -getattr(signal, "SIGXCPU", 0):
        return f"it does not end (stopped after {TRIAL_CPU_SECONDS} s)"
    return f"rendering it ends the process ({child.stderr.decode(errors='replace').strip()[-200:]})"


# The child begins without site and without the user's folder, then takes over our search path.
_CHILD = """
import json, runpy, sys
given = json.loads(sys.stdin.buffer.read())
sys.path[:] = given["path"]
fault = runpy.run_path(sys.argv[1])["_trial_here"](given)
sys.stdout.buffer.write(fault.encode())
"""


def _trial_here(given: Mapping[str, Any]) -> str:
    _limit_child()
    try:
        template = compiled(given["source"], given["date"])
        for case in given["cases"]:
            try:
                render(template, case)
            except (Unruly, MemoryError, RecursionError):
                raise
            except FAULTS:
                continue
    except MemoryError:
        return "it prints without end (out of memory)"
    except RecursionError:
        return "it calls itself without end"
    except jinja2.TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    except FAULTS as error:
        return str(error)
    return ""


def _limit_child() -> None:
    try:
        import resource
    except ImportError:  # Windows; the time limit is left
        return
    limits = {
        resource.RLIMIT_AS: (TRIAL_BYTES, TRIAL_BYTES),
        resource.RLIMIT_CPU: (TRIAL_CPU_SECONDS, TRIAL_CPU_SECONDS + 1),
    }
    for kind, limit in limits.items():
        with contextlib.suppress(ValueError, OSError):  # macOS refuses the first
            resource.setrlimit(kind, limit)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> None:
    raise Refused(message)


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_size(v) for v in value.values())
    return sum(_size(v) for v in value) if isinstance(value, list | tuple) else 1


def _marks_in(text: str) -> Iterator[int]:
    return (i for i, c in enumerate(text) if c in MARKS)
