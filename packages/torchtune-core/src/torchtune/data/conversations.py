"""Turns as data sets write them (OpenAI, ShareGPT and their relatives), read into messages."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torchtune.config.names import nearest
from torchtune.data.messages import Message
from torchtune.errors import DataError

__all__ = ["holds_turns", "read_json", "read_tools", "read_turns"]

ROLES = {
    **{"system": "system", "developer": "system"},
    **{"user": "user", "human": "user"},
    **{"assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant"},
    **{"chatgpt": "assistant", "function_call": "assistant", "tool_call": "assistant"},
    **{"tool": "tool", "function": "tool", "observation": "tool", "tool_response": "tool"},
    **{"function_response": "tool", "ipython": "tool"},
}
CALLS = ("function_call", "tool_call")  # ShareGPT: the turn's text is a call, as JSON
WEIGHTS = ("trained", "train", "weight", "loss_weight")  # 0 or false: not trained on
KEPT = ("name", "tool_call_id")  # for templates that read them


def read_turns(turns: Any) -> tuple[Message, ...]:
    """Return the messages of a conversation.

    Args:
        turns: A list of ``{"role", "content"}`` or ``{"from", "value"}``, or that list as JSON
            text (as CSV files hold it). Content is text, or a list of parts of the types
            ``text``, ``reasoning`` and ``tool_call``.

    Raises:
        DataError: A role is unknown, or a turn has another shape; the turn's number is named.
    """
    turns = read_json(turns)
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise DataError("E-DATA-TURNS", f"a list of turns is wanted, found {_shown(turns)}")
    return tuple(_read_turn(turn, number) for number, turn in enumerate(turns, 1))


def read_json(value: Any) -> Any:
    """Return what a text of JSON says, anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def holds_turns(value: Any) -> bool:
    """Say whether `value` is a list of turns, rather than a text, which may well be JSON itself.

    A text is taken as turns where each object in its list has what a turn needs.
    """
    found = read_json(value)
    if not isinstance(found, Sequence) or isinstance(found, str):
        return False
    return found is value or (bool(found) and all(map(_is_turn, found)))


def _is_turn(value: Any) -> bool:
    keys = set(value) if isinstance(value, Mapping) else set()
    return {"role", "content"} <= keys or {"from", "value"} <= keys


def read_tools(value: Any) -> list[dict[str, Any]] | None:
    """Return tool descriptions as templates take them: ``{"type": "function", "function": ...}``.

    Args:
        value: A list, one description, JSON text of either, or nothing.
    """
    value = read_json(value)
    if not value:
        return None
    tools = [value] if isinstance(value, Mapping) else value
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError("E-DATA-TOOLS", f"tools must be a list of objects, found {_shown(value)}")
    return [
        dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)}
        for tool in tools
    ]


def _read_turn(turn: Any, number: int) -> Message:
    if isinstance(turn, Message):
        return turn
    said = _first(turn, ("role", "from")) if isinstance(turn, Mapping) else None
    if said is None:
        want = "role and content, or from and value"
        raise DataError("E-DATA-TURNS", f"turn {number} needs {want}; found {_shown(turn)}")
    role = ROLES.get(said.lower()) if isinstance(said, str) else None
    if role is None:
        known = ", ".join(sorted(ROLES))
        what = f"unknown role {said!r} in turn {number}; known are {known}"
        raise DataError("E-DATA-ROLE", what, do=nearest(str(said), ROLES))
    text, calls = _content(_first(turn, ("content", "value")), number)
    if said.lower() in CALLS:
        text, calls = "", _calls(text, number)
    calls += _calls(turn.get("tool_calls") or [], number)
    reasoning = _first(turn, ("reasoning_content", "reasoning"))
    return Message(
        role=role,  # type: ignore[arg-type]
        content=_thought(reasoning) + text if isinstance(reasoning, str) else text,
        tool_calls=calls or None,
        trained=_trained(turn, number) if role == "assistant" else None,
        extra={key: turn[key] for key in KEPT if turn.get(key) is not None} or None,
    )


def _first(mapping: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((mapping[name] for name in names if mapping.get(name) is not None), None)


def _trained(turn: Mapping[str, Any], number: int) -> bool | None:
    weight = _first(turn, WEIGHTS)
    if weight is None or weight in (0, 1):
        return None if weight is None else bool(weight)
    what = f"turn {number} has the weight {_shown(weight)}"
    raise DataError("E-DATA-TURNS", what, do="write 0 or 1: a turn is trained or it is not")


def _content(value: Any, number: int) -> tuple[str, list[Mapping[str, Any]]]:
    """Return the text of a turn and the calls among its parts."""
    if value is None or isinstance(value, str):
        return value or "", []
    if not isinstance(value, Sequence):
        raise DataError("E-DATA-TURNS", f"the content of turn {number} is {_shown(value)}, no text")
    texts: list[str] = []
    calls: list[Mapping[str, Any]] = []
    for part in value:
        kind, said = _part(part, number)
        if kind == "tool_call":
            calls += _calls(said, number)
        else:
            texts.append(_thought(said) if kind == "reasoning" else said)
    return "".join(texts), calls


def _part(part: Any, number: int) -> tuple[str, str]:
    if isinstance(part, str):
        return "text", part
    kind = part.get("type", "text") if isinstance(part, Mapping) else None
    said = _first(part, ("text", "value", "content")) if kind else None
    if kind not in ("text", "reasoning", "tool_call") or not isinstance(said, str):
        raise DataError(
            "E-DATA-PART",
            f"turn {number} has a part that is no text: {_shown(part)}",
            do="parts of the types text, reasoning and tool_call are known",
        )
    return kind, said


def _thought(text: str) -> str:
    """Return reasoning as the models that think write it, and their templates expect it."""
    return f"<think>\n{text}\n</think>\n\n" if text else ""


def _calls(value: Any, number: int) -> list[Mapping[str, Any]]:
    """Return tool calls in the form of the OpenAI API, arguments as an object."""
    value = read_json(value)
    calls = [value] if isinstance(value, Mapping) else value
    if isinstance(calls, str) or not all(isinstance(call, Mapping) for call in calls):
        do = 'write {"name": ..., "arguments": {...}}, or a list of these'
        raise DataError("E-DATA-CALL", f"turn {number} has a call that is {_shown(value)}", do=do)
    return [_call(call, number) for call in calls]


def _call(call: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError("E-DATA-CALL", f"turn {number} has a call without a name: {_shown(call)}")
    kept = {"id": call["id"]} if call.get("id") is not None else {}
    arguments = read_json(function.get("arguments", {}))
    return {
        **kept,
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
