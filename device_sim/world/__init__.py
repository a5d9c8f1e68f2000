"""The vehicle's world: road signs, the camera that sees them, and a small network that reads them.

Everything is procedural, so a demonstration needs no data set: `signs` draws, `camera` photographs, `dataset`
turns both into an endless seeded stream, `network` holds the classifier and `train` makes its weights.
Needs the `demo` extra.
"""
