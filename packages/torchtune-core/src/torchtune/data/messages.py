"""One turn of a conversation, the form that every row takes before it becomes tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torchtune.errors import DataError

__all__ = ["Message", "Role"]

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Message:
    """One turn: who speaks, what is said, and whether it is trained on.

    Args:
        role: ``system``, ``user``, ``assistant`` or ``tool``.
        content: The text; None only beside tool calls.
        tool_calls: Calls that an assistant makes, in the form of the OpenAI API; templates get
            them as they are.
        trained: Whether an assistant's turn is trained on; None leaves it to ``train_on``.
        instruct: Instruction and input of a row that is a task and not a chat (alpaca,
            question/answer); the input may be empty. Only the Alpaca prompt looks at it.
        extra: Other keys that a template may read, such as ``name`` or ``tool_call_id``.

    Raises:
        DataError: The role is unknown, or a turn other than the assistant's is to be trained on.
    """

    role: Role
    content: str | None
    tool_calls: Sequence[Mapping[str, Any]] | None = None
    trained: bool | None = None
    instruct: tuple[str, str] | None = None
    extra: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            known = ", ".join(get_args(Role))
            raise DataError("E-ROLE", f"unknown role {self.role!r}; known are {known}")
        if self.trained and self.role != "assistant":
            raise DataError(
                "E-ROLE", f"only an assistant's turn can be trained on, not {self.role}'s"
            )

    @classmethod
    def task(cls, instruction: str, input: str = "") -> "Message":
        """Return the user's turn of an alpaca or question/answer row: `instruction` and `input`.

        Where the model has a chat template the two texts are joined by a blank line; where it has
        none they go into the two places of the Stanford Alpaca prompt.
        """
        content = f"{instruction}\n\n{input}" if input else instruction
        return cls("user", content, instruct=(instruction, input))

    def as_dict(self) -> dict[str, Any]:
        """Return the turn as templates read it; keys without a value are left out."""
        found = {"role": self.role, "content": self.content, "tool_calls": self.tool_calls}
        found = {**(self.extra or {}), **found}
        return {key: value for key, value in found.items() if value is not None}
