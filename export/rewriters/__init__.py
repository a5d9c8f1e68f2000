"""Rewriters, which make one buyer's copy differ from another's.

Each is defined once with the operations of `ops.Ops`. Its backends render it as ONNX nodes (the copy), as a torch
module (for white-box studies) and in numpy (the parity reference).
"""

from variegate.export.rewriters.definition import Inputs, Rewriter
from variegate.export.rewriters.permutation import Permutation
from variegate.export.rewriters.qim import Qim
from variegate.export.rewriters.spread import SpreadSpectrum
from variegate.export.rewriters.table import KINDS, from_parameters, to_parameters

__all__ = [
    "KINDS",
    "Inputs",
    "Permutation",
    "Qim",
    "Rewriter",
    "SpreadSpectrum",
    "from_parameters",
    "to_parameters",
]
