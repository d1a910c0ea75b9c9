"""Losses: sums over tokens, never means."""

from torchtune.losses.cut_vocabulary import VocabularyShard
from torchtune.losses.linear_cross_entropy import LinearCrossEntropy

__all__ = ["LinearCrossEntropy", "VocabularyShard"]
