"""Which of several failures is told as the cause."""

from types import SimpleNamespace

import pytest
from torchtune.distributed.failures import Failure, first_failure

GLOO = "gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:16280. GLHF!"
ECHO = Failure(f"Traceback (most recent call last):\n  File ...\nRuntimeError: {GLOO}", 1)
OURS = Failure("error[E-ROW]: bad row", 4)
BUG = Failure("Traceback (most recent call last):\n  File ...\nValueError: boom", 1)


@pytest.mark.parametrize(
    ("messages", "codes", "told"),
    [
        ([ECHO, OURS], {0: 1, 1: 4}, "error[E-ROW]: bad row"),
        ([ECHO, BUG], {0: 1, 1: 1}, "ValueError: boom"),
        ([ECHO], {0: 1, 1: -9}, "the process of rank 1 got SIGKILL"),
        ([ECHO], {0: 1, 1: -6}, "the process of rank 1 got SIGABRT"),
        ([ECHO], {2: 1}, "a process has left that those here work with"),
        ([ECHO, ECHO], {2: 1, 3: 1}, "look at what the launchers of other machines say"),
    ],
)
def test_the_cause_is_told_and_not_what_followed_from_it(messages, codes, told):
    # the one that died without a word died first
    processes = {
        rank: SimpleNamespace(exitcode=code, timestamp=-rank) for rank, code in codes.items()
    }
    failure = first_failure(messages, processes)
    assert told in failure.text and "GLHF" not in failure.text
