"""Presets: a name in params.yaml, `model.preset`, instead of the switches that choose photos, network and head.

A preset decides each of the fields that `PRESETS` lists, and no other. One rule holds for a switch beside it: what
stands there as params.yaml is shipped follows the preset; what says something else is refused, and named.
docs/models.md has what each preset costs and gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

Preset = Literal["light", "default", "best"]
Values = dict[str, dict[str, Any]]


def _values(features: Mapping[str, Any], model: Mapping[str, Any]) -> Values:
    whole = {"backbone": "mobilenet", "sizes": [320], "crops": "none", "flip": False, "shape": "square"}
    return {
        "features": whole | dict(features),
        "model": {"head": "auto", "members": None, "combine": "mean"} | dict(model),
    }


PRESETS: dict[str, Values] = {
    # The smallest views with which one network keeps 99 % of the default's accuracy.
    "light": _values({"sizes": [288]}, {"head": "bilinear"}),
    # What params.yaml is as shipped.
    "default": _values({}, {}),
    # Whatever cross-validation says, no matter the cost.
    "best": _values({}, {"members": ["mobilenet/bilinear", "efficientnet_lite2/bilinear"]}),
}


def with_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of params.yaml with those of its preset; ValueError names a switch that says something else."""
    found = dict(values)
    name = _section(found, "model").get("preset")
    if not isinstance(name, str) or name not in PRESETS:
        return found  # none, or one that the check of the field refuses
    for section, fields in PRESETS[name].items():
        given = _section(found, section)
        for field, value in fields.items():
            if field in given and not _same(given[field], value, PRESETS["default"][section][field]):
                raise ValueError(
                    f"{section}.{field} is {_shown(given[field])}, but model.preset {name} says {_shown(value)}; take "
                    f"{section}.{field} out, or model.preset"
                )
        found[section] = given | fields
    return found


def without_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of params.yaml without their preset and the fields that it decided, which have their defaults then."""
    return dict(values) if _section(values, "model").get("preset") is None else undecided(values)


def undecided(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of params.yaml without their preset and all fields that a preset decides, whoever set them."""
    found = dict(values)
    for section, fields in PRESETS["default"].items():
        own = _section(found, section)
        found[section] = {field: value for field, value in own.items() if field not in (*fields, "preset")}
    return found


def is_decided(dotted: str) -> bool:
    """Whether a preset decides a field, ``features.sizes``."""
    section, _, field = dotted.partition(".")
    return field in PRESETS["default"].get(section, {})


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    given = values.get(name)
    if isinstance(given, BaseModel):
        return dict(given.model_dump(mode="json", exclude_unset=True))
    return dict(given) if isinstance(given, Mapping) else {}


def _same(given: Any, *others: Any) -> bool:
    plain = list(given) if isinstance(given, (list, tuple)) else given
    return any(type(plain) is type(other) and plain == other for other in others)


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(str, value))}]"
    return {None: "null", True: "true", False: "false"}.get(value, str(value))
