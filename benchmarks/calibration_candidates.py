"""Part of `benchmarks.calibration`: the settings that are tried, with their names in figures."""

from __future__ import annotations

from collections.abc import Iterator

from variegate.export.rewriters import Permutation, Qim, Rewriter, SpreadSpectrum

_FINE, _COARSE = (4, 8), (4, 4)
_LINEAR = (
    # Strength against number, at one step: what the accuracy allows.
    (_FINE, 1, (128,), 4.0),
    (_FINE, 2, (128,), 5.0),
    (_FINE, 2, (128,), 4.5),
    (_FINE, 2, (128,), 4.0),
    (_FINE, 4, (128,), 6.0),
    (_COARSE, 4, (256,), 5.0),
    # The step: near attractors, or such as a search finds from afar.
    (_FINE, 2, (64,), 4.5),
    (_FINE, 2, (64,), 4.0),
    (_FINE, 2, (256,), 4.5),
    (_FINE, 2, (128, 512), 4.5),
)
_SQUARED = (
    (_FINE, 1, (128,), 13.0),
    (_FINE, 1, (128,), 12.0),
    (_FINE, 1, (128,), 11.0),
    (_FINE, 2, (128,), 26.0),
    (_FINE, 2, (128,), 24.0),
    (_FINE, 2, (128,), 23.0),
    (_FINE, 2, (128,), 20.0),
    (_FINE, 4, (128,), 44.0),
    (_FINE, 1, (64,), 13.0),
    (_FINE, 1, (64,), 12.0),
    (_FINE, 2, (64,), 24.0),
    (_FINE, 2, (64,), 23.0),
    (_FINE, 2, (32,), 23.0),
    (_FINE, 2, (256,), 23.0),
)
_ALPHAS = (0.5, 0.8, 0.95)
_AMPLITUDES = (0.05, 0.2)


def candidates() -> Iterator[tuple[str, Rewriter]]:
    """Settings for 32 x 32 pictures, with their names."""
    for squared, settings in ((False, _LINEAR), (True, _SQUARED)):
        for grid, repeats, steps, beta in settings:
            qim = Qim(grid=grid, repeats=repeats, steps=steps, beta=beta, squared=squared)
            words = [f"b{qim.messages}", f"grid{grid[0]}x{grid[1]}", "d" + "and".join(map(str, steps)), f"beta{beta:g}"]
            words += ["squared"] if squared else []
            yield "qim_" + "_".join(words).replace(".", "p"), qim
    for alpha in _ALPHAS:
        yield f"permutation_{alpha:g}".replace(".", "p"), Permutation(alpha=alpha)
    for amplitude in _AMPLITUDES:
        yield f"spread_{amplitude:g}".replace(".", "p"), SpreadSpectrum(amplitude=amplitude)
