"""What Zhang et al. report (ASIA CCS 2023), for the columns that stand beside ours.

VGG-19 at 32 x 32, 10 independently trained bases, 10 rewritten copies of each; attacks by ART with its defaults, on
images that the copy reads rightly. Figures are percent, with the paper's deviations.
"""

from __future__ import annotations

from typing import Final

ACCURACY: Final = {
    "cifar10": {"base": (96.3, 1.3), "spread": (94.3, 0.3), "qim": (94.5, 0.2), "permutation": (94.0, 1.0)},
    "gtsrb": {"base": (95.8, 1.7), "spread": (95.1, 0.3), "qim": (95.3, 0.3), "permutation": (95.1, 0.8)},
}
"""Table 1: dataset -> copies -> accuracy and its deviation."""
REPLICATION: Final = {
    ("cifar10", "independent"): {"boundary": (5.5, 0.6), "hsj": (5.8, 0.8), "geoda": (27.0, 1.9)},
    ("gtsrb", "independent"): {"boundary": (5.4, 0.6), "hsj": (7.0, 0.6), "geoda": (7.8, 0.9)},
    ("cifar10", "permutation"): {"boundary": (22.7, 0.9), "hsj": (34.0, 1.2), "geoda": (20.5, 0.9)},
    ("gtsrb", "permutation"): {"boundary": (7.9, 0.7), "hsj": (19.8, 0.9), "geoda": (12.1, 1.0)},
    ("cifar10", "permutation_training"): {"boundary": (5.4, 0.6), "hsj": (4.5, 0.6), "geoda": (13.1, 1.3)},
    ("gtsrb", "permutation_training"): {"boundary": (2.3, 0.5), "hsj": (2.7, 0.6), "geoda": (4.6, 0.7)},
    ("cifar10", "spread"): {"boundary": (40.1, 1.0), "hsj": (47.7, 1.0), "geoda": (39.1, 1.4)},
    ("gtsrb", "spread"): {"boundary": (28.4, 1.1), "hsj": (27.5, 0.6), "geoda": (13.5, 0.7)},
    ("cifar10", "spread_training"): {"boundary": (5.2, 0.6), "hsj": (4.5, 0.4), "geoda": (21.5, 0.8)},
    ("gtsrb", "spread_training"): {"boundary": (2.7, 0.6), "hsj": (1.7, 0.3), "geoda": (3.3, 0.2)},
    ("cifar10", "qim"): {"boundary": (3.7, 0.2), "hsj": (2.5, 0.2), "geoda": (9.2, 0.3)},
    ("gtsrb", "qim"): {"boundary": (0.7, 0.2), "hsj": (0.5, 0.1), "geoda": (8.4, 0.4)},
    ("cifar10", "qim_training"): {"boundary": (3.7, 0.2), "hsj": (2.5, 0.2), "geoda": (5.3, 0.3)},
    ("gtsrb", "qim_training"): {"boundary": (0.7, 0.2), "hsj": (0.1, 0.1), "geoda": (2.3, 0.2)},
}
"""Table 2: dataset and copies (`_training`: attacker and victim have different bases) -> attack -> replication."""
COST: Final = {"independent": (3800, 78366, 0.0), "qim": (0, 2, 0.4), "permutation": (0, 0, 0.0)}
"""Table 3: for each copy seconds of training, kilobytes, and milliseconds of inference beyond the base's 3.5."""
