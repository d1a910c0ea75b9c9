"""Paths of one machine, taken out of values that are published."""

import pytest
from torchtune_integrations.hub.local_paths import without_local_paths


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/alice/data/rows.jsonl", "rows.jsonl"),
        ("/home/alice smith/my rows.jsonl", "my rows.jsonl"),
        ("/home/alice", "~"),
        ("~/rows.jsonl", "rows.jsonl"),
        ("C:\\Users\\alice\\rows.jsonl", "rows.jsonl"),
        ("C:\\Users\\alice", "~"),
        ("../../alice/rows.jsonl", "rows.jsonl"),
        ("file:///home/alice/rows.jsonl", "rows.jsonl"),
        ("train=/home/alice/a.jsonl, then ~/b.jsonl", "train=a.jsonl, then b.jsonl"),
        *((kept, kept) for kept in ("./rows.jsonl", "data/rows.jsonl", "tatsu-lab/alpaca")),
        *(
            (kept, kept)
            for kept in ("https://host/a/b", "s3://bucket/a", "and/or", "1 / 2", "{a}/{b}")
        ),
    ],
)
def test_the_last_part_alone_is_left_of_a_path(text, shown):
    assert without_local_paths({"a": [text, 1, None]}) == {"a": [shown, 1, None]}
