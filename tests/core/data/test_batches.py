"""A flat micro-batch, written out by hand."""

import pickle
from dataclasses import replace

import pytest
import torch
from torchtune.data import (
    Documents,
    flat_batch,
    idle_batch,
    join_documents,
    pad_batch,
    split_documents,
)
from torchtune.errors import DataError


def test_labels_are_shifted_once_and_stop_at_each_document():
    documents = Documents.of(
        [([5, 6, 7, 8], [False, False, True, True]), ([9, 10], [True, True]), ([1], [True])]
    )
    batch = flat_batch(documents, [0, 1, 2])
    assert batch.tokens.tolist() == [5, 6, 7, 8, 9, 10, 1]
    assert batch.labels.tolist() == [-100, 7, 8, -100, 10, -100, -100]
    assert batch.positions.tolist() == [0, 1, 2, 3, 0, 1, 0]
    assert batch.lengths == (4, 2, 1)
    assert batch.supervised == documents.supervised == 3
    assert batch.rows == ("memory:1", "memory:2", "memory:3")
    assert {batch.tokens.dtype, batch.labels.dtype, batch.positions.dtype} == {torch.int64}


@pytest.mark.parametrize("wrong", [([1, 2], [True]), ([1], [True, True]), ([], [])])
def test_a_mask_of_another_length_does_not_shift_those_behind_it(wrong):
    with pytest.raises(DataError, match=r"E-DATA-LABELS(.|\n)*memory:2"):
        Documents.of([([1, 2], [0, 1]), wrong, ([3, 4], [1, 0])])


def test_rows_of_a_batch_may_come_in_any_order():
    documents = Documents.of([([1, 2], [True, True]), ([3, 4, 5], [True, True, False])])
    batch = flat_batch(documents, [1, 0])
    assert batch.tokens.tolist() == [3, 4, 5, 1, 2]
    assert batch.labels.tolist() == [4, -100, -100, 2, -100]


def test_an_idle_batch_trains_nothing_and_counts_nothing():
    batch = idle_batch()
    assert (batch.supervised, batch.num_tokens, batch.lengths) == (0, 0, (1,))
    assert batch.labels.tolist() == [-100]


def test_a_tail_fills_a_row_up_and_is_nobody_s_token():
    batch = flat_batch(Documents.of([([5, 6, 7], [0, 1, 1]), ([8, 9], [0, 1])]), [0, 1])
    padded = pad_batch(batch, 4)
    assert padded.tokens.tolist() == [5, 6, 7, 8, 9, 0, 0, 0]
    assert padded.labels.tolist() == [6, 7, -100, 9, -100, -100, -100, -100]
    assert padded.positions.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert (padded.lengths, padded.rows) == ((3, 2, 3), batch.rows)
    assert (padded.num_tokens, padded.supervised) == (5, 3)
    assert pad_batch(batch, 5) is batch


def test_select_keeps_each_document_with_its_place():
    documents = Documents.of([([1, 2], [0, 1]), ([3], [1]), ([4, 5, 6], [0, 1, 1])])
    chosen = documents.select(torch.tensor([2, 0]))
    assert chosen.tokens.tolist() == [4, 5, 6, 1, 2]
    assert chosen.trained.int().tolist() == [0, 1, 1, 0, 1]
    assert [chosen.where(0), chosen.where(1)] == ["memory:3", "memory:1"]
    assert pickle.loads(pickle.dumps(chosen)).lengths.tolist() == [3, 2]


def test_joined_documents_are_those_of_one_list_and_keep_their_files():
    first, second = [([1, 2], [0, 1]), ([3], [1])], [([4, 5, 6], [0, 1, 1])]
    named = replace(Documents.of(second), files=("b.jsonl",))
    joined, whole = join_documents([Documents.of(first), named]), Documents.of(first + second)
    assert joined.digest() == whole.digest()
    assert [joined.where(1), joined.where(2)] == ["memory:2", "b.jsonl:1"]
    assert join_documents([joined, joined]).where(5) == "b.jsonl:1"


def test_a_split_holds_out_a_share_and_loses_nothing():
    documents = Documents.of([([i, i], [True, True]) for i in range(100)])
    left, held = split_documents(documents, 0.05, seed=1)
    again = split_documents(documents, 0.05, seed=1)[1]
    assert (len(left), len(held)) == (95, 5)
    assert again.tokens.tolist() == held.tokens.tolist()
    assert sorted({*left.tokens.tolist(), *held.tokens.tolist()}) == list(range(100))
    assert split_documents(documents, 0.05, seed=2)[1].tokens.tolist() != held.tokens.tolist()
