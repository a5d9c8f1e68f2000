"""What the page says that does not depend on the data."""

LEAD = "How often an adversarial sample found on one copy of a classifier fools another copy, and what it cost to find."
SUMMARY = (
    "Below a rate: its 95 % interval, the wider of that by pair (Wilson) and that by image (bootstrap over whole "
    "images); |B and C| of |B|; the overshoot; the queries after which a search was stopped. As found is at the "
    "overshoot nearest 1. Whoever has a sample may stretch it or stop earlier, hence the highest rates beside it. Raw "
    "rates are in tables/replication_overshoot.csv."
)
WEAK = "Taken from the data by rule, not chosen: the highest figures of each kind, and what was not looked at."
READING = (
    (
        "B is the samples that fool the copy they were found on, C those that fool the victim. The replication "
        "rate is |B and C| / |B| over all pairs of a sample and a victim other than its attacker (Zhang et al., "
        "ASIA CCS 2023). To fool is to be read as any other class than the true one; for an attack that aims at one "
        "class, as that class. A search starts from what its copy says of the clean image; where that is wrong, a "
        "sample read as the true class does not count as found."
    ),
    (
        "Raw counts every pair. Net counts pairs whose clean image both copies read rightly: a copy that errs on "
        "the clean image was not fooled by the attack."
    ),
    (
        "Overshoot s: the frame shown is x + s (x' - x), clipped, and rounded to bytes for uint8. B is judged at "
        "the same s."
    ),
    (
        "Pairs are not independent: a sample meets several victims, an image several attackers. Intervals by pair "
        "(Wilson) take them for independent and are too narrow; intervals by image draw whole images. Where all "
        "images have the same share, the latter are Wilson's over the number of images. Bands and bars in plots are the"
        " wider of both."
    ),
    (
        "Distances are of the frame shown, pixels in 0..1. Bins pool all overshoots. Success within a distance is "
        "the share of net pairs whose victim some frame at no more than this distance fools."
    ),
    "Nothing here speaks of attacks that were not run.",
)
OVERSHOOT = "Net, with the wider 95 % interval as a band; raw as a thin line. At the end of the search."
DISTANCE = "A far frame fools more copies; a protection must be judged at the distances that an attacker needs."
BUDGET = (
    "Net, for the best sample after so many queries; the last point is the end of the search. In the fleet's own "
    "line: the sample as found. Dotted with open markers: at the overshoot of the group's highest rate."
)
MATRIX = (
    "Net replication from each copy to each other: the sample as found at the end of the search, and at "
    "the budget and overshoot where the group's rate is highest. In a cell each image counts once, so that Wilson's "
    "interval (95 %) holds; below it |B and C| of |B|."
)
QUERIES = (
    "Best distance so far: median, and quartiles as a band. Searches without a sample count as infinitely far "
    "throughout; where the median is infinite there is no line."
)
SOURCE = (
    "Made from the files below alone. digests.json has the SHA-256 of each, of the configuration and of every "
    "table; its own is "
)
