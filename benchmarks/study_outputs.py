"""Changes of outputs under attack (Zhang et al. 2023, figure 4): the base's part F = p and the rewriter's part G = R.

A sample that takes an attacker's copy from class y to class t changes F and G for both classes. Copies of one base
share F, so F changes equally on the victim. The change of G helps only on the attacker's copy, because the victim's G
has other keys. So a sample replicates as far as it depends on F.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.study_copies import Ensemble
from testbed.torch_ops import Copy


@dataclass(frozen=True)
class Change:
    """Changes from the clean image to the sample, each float64 (N,), on the scale of M = F + G before normalisation.

    Attributes:
        gained_f: Of F for the class t that the attacker's copy answers the sample with.
        gained_g: Of G for t.
        lost_f: Of F for the class y of the clean image.
        lost_g: Of G for y.
    """

    gained_f: NDArray[np.float64]
    gained_g: NDArray[np.float64]
    lost_f: NDArray[np.float64]
    lost_g: NDArray[np.float64]

    @property
    def share_g(self) -> NDArray[np.float64]:
        """The rewriter's share of the change of the margin M_t - M_y."""
        of_g, of_f = self.gained_g - self.lost_g, self.gained_f - self.lost_f
        out: NDArray[np.float64] = of_g / (of_f + of_g)
        return out


def change(copy: Copy, clean: Tensor, samples: Tensor, own: Tensor, attacked: Tensor) -> Change:
    """Changes on one copy, the attacker's or a victim's.

    Args:
        copy: The copy whose outputs are examined.
        clean: Images (N, C, H, W) in 0..1.
        samples: The samples found on the attacker's copy, likewise.
        own: int64 (N,), classes y of the clean images.
        attacked: int64 (N,), classes t: the attacker's copy's labels of the samples.
    """
    model = Ensemble([copy])
    with torch.no_grad():
        (f_before, m_before), (f_after, m_after) = model.parts(clean), model.parts(samples)
    of_f = (f_after - f_before)[0]
    of_g = (m_after - m_before)[0] - of_f

    def at(value: Tensor, classes: Tensor) -> NDArray[np.float64]:
        return value.gather(1, classes[:, None]).squeeze(1).numpy().astype(np.float64)

    return Change(at(of_f, attacked), at(of_g, attacked), at(of_f, own), at(of_g, own))
