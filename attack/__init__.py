"""The red team's tools: attacks that see labels only, campaigns against a fleet, and reports.

What most people call::

    from variegate import attack

    with attack.open_oracle("device:mine") as mine, attack.open_oracle("device:theirs") as theirs:
        found = attack.attack_images(mine, "cgba", images, classes, queries=200)
        shown = attack.replay(found, {"mine": mine, "theirs": theirs})
    print(shown.samples, shown.fooled)  # for each overshoot s, how many fool each device

`images` are (N, C, H, W), uint8 or float32 in 0..1, `classes` their true ones. Devices may also be http:// and socket:
addresses. Whole campaigns are `variegate attack run`.
"""

from variegate.attack.oracles.address import open_oracle
from variegate.attack.trial import Replay, Trial, attack_images, replay

__all__ = ["Replay", "Trial", "attack_images", "open_oracle", "replay"]
