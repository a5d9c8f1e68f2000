"""The few operations that rewriters use, for values of any backend."""

from __future__ import annotations

from typing import Protocol, TypeVar

V = TypeVar("V")


class Ops(Protocol[V]):
    """A backend. Values are float32 tensors; the first axis is the batch unless said."""

    def convolve(self, image: V, weight: V, dilation: tuple[int, int]) -> V:
        """Cross-correlation, no padding, stride 1: (N, C, H, W) and (M, C, h, w) to (N, M, H', W')."""
        ...

    def add(self, left: V, right: V) -> V:
        """Sum with broadcasting."""
        ...

    def subtract(self, left: V, right: V) -> V:
        """Difference with broadcasting."""
        ...

    def scale(self, value: V, factor: float) -> V:
        """Product with a constant, rounded to float32."""
        ...

    def shift(self, value: V, by: float) -> V:
        """Sum with a constant, rounded to float32."""
        ...

    def signed_square(self, value: V) -> V:
        """Each value times its magnitude."""
        ...

    def round(self, value: V) -> V:
        """Nearest integer, ties to even."""
        ...

    def sum_abs(self, value: V, classes: int) -> V:
        """(N, classes * R, h, w) to (N, classes): sum of magnitudes over each class's R * h * w values."""
        ...

    def take(self, value: V, indices: V) -> V:
        """Columns of (N, n) in the order of int64 indices (n,)."""
        ...

    def project(self, image: V, weight: V) -> V:
        """(N, C, H, W) and (l, n) to (N, n), with l = C * H * W."""
        ...
