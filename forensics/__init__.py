"""The investigator's side: finds the copy on which an adversarial sample was made.

What most people call::

    from variegate import forensics

    samples = forensics.read_samples([Path("found.npz")], release)  # as `variegate attack try --out` writes them
    verdict = forensics.trace(release, seller, samples, forensics.registered(registry, release))
    print(verdict.accused, verdict.corrected(verdict.suspects[0]))

`release` is the copies' release, `seller` its keys, and `registry` the seller's `export.registry.Registry`.
`verdict.accused` is None if nobody can be accused.
"""

from variegate.forensics.attractors import THRESHOLD, Sample, Suspect, Verdict
from variegate.forensics.tracing import read_samples, registered, trace

__all__ = ["THRESHOLD", "Sample", "Suspect", "Verdict", "read_samples", "registered", "trace"]
