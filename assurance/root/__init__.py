"""Root's attacks on a serving device, each of which must succeed on an open machine and fail in a locked one."""

from __future__ import annotations

from assurance.root.run import Report, Target, archive, attack, judged

__all__ = ["Report", "Target", "archive", "attack", "judged"]
