"""From the characters that are trained on to the tokens."""

from collections.abc import Collection, Sequence

__all__ = ["token_mask"]


def token_mask(
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    text: str,
    spans: Sequence[tuple[int, int]],
    *,
    special_ids: Collection[int],
    stop_ids: Collection[int],
) -> list[bool]:
    """Say of each token whether it is trained.

    A token is if one of its characters lies in a span. A span ends with its end-of-turn token:
    white space that a template writes behind that is not trained, and a stop token that a
    template writes just behind the span is.

    Args:
        ids: The tokens.
        offsets: The characters ``[start, end)`` of each; empty for the first bytes of a character
            that is cut into bytes.
        text: What was encoded.
        spans: Characters to train on, in order and apart.
        special_ids: Ids of special tokens; the last of them in a span ends the turn.
        stop_ids: Ids at which generation ends.
    """
    trained = [False] * len(ids)
    at = 0
    for start, end in spans:
        while at < len(ids) and max(offsets[at][1], offsets[at][0] + 1) <= start:
            at += 1
        first = at
        while at < len(ids) and offsets[at][0] < end:
            at += 1
        last = _end_of_turn(ids, offsets, text, (first, at), special_ids)
        if last == at < len(ids) and ids[last - 1] not in special_ids and ids[last] in stop_ids:
            last += 1
        trained[first:last] = [True] * (last - first)
    return trained


def _end_of_turn(
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    text: str,
    tokens: tuple[int, int],
    special_ids: Collection[int],
) -> int:
    """The token after the last special one, if only white space follows that; else the end."""
    first, end = tokens
    last = end - 1
    while last >= first and ids[last] not in special_ids:
        if not text[slice(*offsets[last])].isspace():
            return end
        last -= 1
    return last + 1 if last >= first else end
