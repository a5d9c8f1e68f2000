"""Changed and cut-off artefacts, wrong devices, kills and power cuts against a budget."""
