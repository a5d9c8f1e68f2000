"""The resolved campaign: its file with every default written out, one text for one campaign."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from variegate.attack.campaign.config import Campaign


def to_toml(campaign: Campaign) -> str:
    """The file; `config.parse` reads it back to an equal campaign."""
    lines = ["schema = 1", f"name = {_value(campaign.name)}", f"seed = {campaign.seed}"]
    lines += ["", "[data]", *_pairs(asdict(campaign.data))]
    for fleet in campaign.fleets:
        values = asdict(fleet)
        if fleet.devices:
            values = {key: values[key] for key in ("name", "devices", "frame_rate")}
        lines += ["", "[[fleet]]", *_pairs(values)]
    for attack in campaign.attacks:
        lines += ["", "[[attack]]", *_pairs(asdict(attack), keep=("budgets", "targeted", "starts"))]
    lines += ["", "[replay]", *_pairs(asdict(campaign.replay), keep=("victims",))]
    lines += ["", "[run]", *_pairs(asdict(campaign.run), keep=("workers",))]
    return "\n".join(lines) + "\n"


def _pairs(values: Mapping[str, Any], keep: tuple[str, ...] = ()) -> list[str]:
    """Lines for keys with a value; empty ones stand for what was not given, unless kept."""
    return [
        f"{key} = {_value(value)}"
        for key, value in values.items()
        if key in keep or (value is not None and value != "" and value not in ((), {}))
    ]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_value(v)}" for k, v in value.items()) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool | str):
        # JSON's spelling is TOML's, but for characters written as surrogates and DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
