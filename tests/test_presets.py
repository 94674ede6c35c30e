"""Presets: each decides its fields and no other, old params.yaml keep their key, nothing is overridden silently."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from ssclass.errors import ParamsError
from ssclass.model.training import plan
from ssclass.params import Params, load_params, parse_params
from ssclass.presets import PRESETS, is_decided, with_preset, without_preset
from ssclass.study.rows import changed, load_rows
from ssclass.workspace.create import template_file
from tests.support.models import needed_weights

BASE = "dataset: {classes: [a, b]}\n"


def shipped(**changes: Any) -> dict[str, Any]:
    values = yaml.safe_load(template_file("params.yaml").read_text())
    for dotted, value in changes.items():
        section, _, field = dotted.partition("__")
        values[section][field] = value
    return values


def parsed(values: dict[str, Any]) -> Params:
    return parse_params(yaml.safe_dump(values), "params.yaml")


def test_the_default_preset_is_params_yaml_as_shipped_under_the_same_key() -> None:
    plain = load_params(template_file("params.yaml"))
    named = parsed(shipped(model__preset="default"))
    assert named.result_digest == plain.result_digest
    assert named.features == plain.features
    for section, fields in PRESETS["default"].items():
        assert fields == {name: shipped()[section][name] for name in fields}


def test_params_of_older_versions_keep_their_key() -> None:
    """The digests are those that the version before presets gave."""
    assert parse_params(BASE, "params.yaml").result_digest.startswith("321b272ecf02ea62")
    values = shipped()
    del values["model"]["preset"], values["features"]["shape"]
    assert parsed(values).result_digest.startswith("95d93da11fc17ad0")
    assert load_params(template_file("params.yaml")).result_digest.startswith("95d93da11fc17ad0")


@pytest.mark.parametrize("name", list(PRESETS))
@pytest.mark.parametrize("text", ["bare", "shipped"])
def test_a_preset_decides_its_fields_and_leaves_the_others(name: str, text: str) -> None:
    values = shipped() if text == "shipped" else yaml.safe_load(BASE)
    values["model"] = values.get("model", {}) | {"preset": name}
    values["train"] = {"folds": 3}
    found = parsed(values)
    told = found.model_dump(mode="json")
    for section, fields in PRESETS[name].items():
        assert {field: told[section][field] for field in fields} == fields
    assert found.train.folds == 3
    assert found.model.preset == name
    assert Params.model_validate(told) == found  # what was decided may be written down, and read again


def test_every_preset_has_its_own_key() -> None:
    digests = {parse_params(f"{BASE}model: {{preset: {name}}}", "params.yaml").result_digest for name in PRESETS}
    assert len(digests) == len(PRESETS)


@pytest.mark.parametrize(
    ("name", "section", "field", "value"),
    [
        ("light", "features", "sizes", [224]),
        ("light", "features", "sizes", None),
        ("light", "features", "crops", "five"),
        ("light", "features", "flip", True),
        ("light", "features", "backbone", "resnet50"),
        ("light", "features", "shape", "own"),
        ("light", "model", "head", "rbf"),
        ("default", "model", "head", "linear"),
        ("best", "model", "members", ["mobilenet/T1", "mobilenet/rbf"]),
        ("best", "model", "combine", "vote"),
        ("best", "features", "flip", 1),
    ],
)
def test_a_switch_that_says_something_else_is_refused_by_its_name(
    name: str, section: str, field: str, value: Any
) -> None:
    with pytest.raises(ParamsError, match=rf"{section}\.{field} is .* but model\.preset {name} says .*; take"):
        parsed(shipped(**{"model__preset": name, f"{section}__{field}": value}))


@pytest.mark.parametrize("name", ["heavy", "", 3, True, ["light"]])
def test_a_preset_that_there_is_not_is_refused(name: Any) -> None:
    with pytest.raises(ParamsError, match=r"model\.preset"):
        parsed(shipped(model__preset=name))


def test_a_row_of_the_study_takes_another_preset_or_none() -> None:
    light = parsed(shipped(model__preset="light"))
    best = changed(light, {"model.preset": "best"})
    assert best.model.members
    rbf = changed(light, {"model.preset": None, "features.crops": "five", "model.head": "rbf"})
    assert (rbf.model.preset, rbf.model.head, rbf.features.crops, rbf.features.sizes) == (None, "rbf", "five", None)
    with pytest.raises(ValidationError, match=r"features\.crops"):
        changed(light, {"features.crops": "five"})


def test_the_study_runs_whatever_preset_the_workspace_has(tmp_path: Path) -> None:
    digests = {}
    for name in (None, "light", "default", "best"):
        params = parsed(shipped(model__preset=name))
        workspace: Any = SimpleNamespace(root=tmp_path, work_tree=lambda params=params: SimpleNamespace(params=params))
        rows = load_rows(workspace)
        assert rows["default"].params == params
        digests[name] = {row: each.params.result_digest for row, each in rows.items() if row != "default"}
        if name:
            assert "model.preset=null" in rows["rbf"].experiment
    assert digests["light"]["best"] == digests["best"]["best"] == digests[None]["best"]
    assert digests["light"]["rbf"] == digests["best"]["rbf"]


@pytest.mark.parametrize(
    "own", ["model: {head: linear}", "features: {sizes: [224], crops: five}", "model: {preset: light}"]
)
def test_the_rows_of_presets_are_the_presets_whatever_the_workspace_says(own: str, tmp_path: Path) -> None:
    """A page that lists all rows failed where params.yaml chose a head of its own."""
    params = parse_params(f"{BASE}{own}", "params.yaml")
    workspace: Any = SimpleNamespace(root=tmp_path, work_tree=lambda: SimpleNamespace(params=params))
    rows = load_rows(workspace)
    for name in ("light", "best"):
        wanted = parse_params(f"{BASE}model: {{preset: {name}}}", "params.yaml")
        assert rows[name].params.result_digest == wanted.result_digest
    assert rows["default"].params == params


def test_what_is_decided_is_known() -> None:
    assert is_decided("features.sizes")
    assert is_decided("model.members")
    assert not any(map(is_decided, ("train.folds", "model.preset", "features", "augment.copies")))
    values = {"model": {"preset": "best", "head": "auto"}, "features": {"sizes": [320]}, "train": {"folds": 2}}
    assert without_preset(with_preset(values)) == {"model": {}, "features": {}, "train": {"folds": 2}}
    assert values["model"] == {"preset": "best", "head": "auto"}


def test_a_plan_is_made_of_each() -> None:
    needed_weights("efficientnet_lite2")
    plans = {name: plan(parse_params(f"{BASE}model: {{preset: {name}}}", "params.yaml")) for name in PRESETS}
    assert [(spec.backbone, head) for spec, head in plans["light"]] == [("mobilenet", "bilinear")]
    assert [spec.backbone for spec, _ in plans["best"]] == ["mobilenet", "efficientnet_lite2"]
    assert max(plans["light"][0][0].sizes) < max(plans["default"][0][0].sizes)
