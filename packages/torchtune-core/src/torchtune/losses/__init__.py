"""Losses: sums over tokens, never means."""

from torchtune.losses.linear_cross_entropy import LinearCrossEntropy

__all__ = ["LinearCrossEntropy"]
