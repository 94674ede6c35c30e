"""deployments.yaml: which deployments a workspace wants, checked before a server is asked for anything.

It is not called prefect.yaml: `prefect deploy --all` would take it for its own, and make deployments that cannot run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ssclass.errors import ParamsError
from ssclass.names import GPU, RETRAIN, TRAIN, train_deployment
from ssclass.params import read_yaml
from ssclass.settings import Settings
from ssclass.text import shown
from ssclass.workspace.create import template_file

FILE = "deployments.yaml"
OLDER = "prefect.yaml"
"""What a workspace's own file was called by earlier versions; it is read where there is no other."""
WHERE = "{{ workspace }}"
UNUSED = ("version", "build", "push", "pull", "enforce_parameter_schema")
"""What `prefect deploy` reads of a deployment and we do not: earlier versions let it stand."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Pool(_Strict):
    """The work pool of a deployment."""

    name: str = Field(min_length=1)
    work_queue_name: str | None = None
    job_variables: dict[str, Any] = {}


class Limit(_Strict):
    """How many runs of a deployment there may be at a time."""

    limit: int = Field(ge=1)
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"] = "ENQUEUE"


class Specification(_Strict):
    """One deployment."""

    name: str = Field(min_length=1)
    flow_name: str = Field(min_length=1)
    entrypoint: str = Field(min_length=1)
    work_pool: Pool
    description: str | None = None
    parameters: dict[str, Any] = {}
    schedules: list[dict[str, Any]] = []
    triggers: list[dict[str, Any]] = []
    tags: list[str] = []
    concurrency_limit: Limit | None = None

    @field_validator("schedules")
    @classmethod
    def _schedules(cls, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
        from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule

        kinds: dict[str, Any] = {"cron": CronSchedule, "interval": IntervalSchedule, "rrule": RRuleSchedule}
        for each in given:
            kind = next((kind for name, kind in kinds.items() if name in each), None)
            if kind is None:
                raise ValueError("a schedule says when by cron, interval or rrule")
            kind(**{name: value for name, value in each.items() if name not in ("slug", "active", "parameters")})
        return given

    @field_validator("triggers")
    @classmethod
    def _triggers(cls, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
        from prefect.events.schemas.deployment_triggers import DeploymentTriggerTypes
        from pydantic import TypeAdapter

        for each in given:
            TypeAdapter(DeploymentTriggerTypes).validate_python(each)
        return given


def deployments_file(settings: Settings) -> Path:
    """The workspace's own deployments.yaml where it has one, else ours."""
    own = (settings.workspace / name for name in (FILE, OLDER))
    return next((path for path in own if path.exists()), template_file(FILE))


def read_deployments(path: Path, where: str, settings: Settings) -> list[dict[str, Any]]:
    """The deployments of a file, with `{{ workspace }}` filled in by `where`; ParamsError says what is wrong."""
    remedy = f"correct it there, or take the file away: the one shipped, {template_file(FILE)}, is then used"
    found = read_yaml(path)
    given = found.get("deployments") if isinstance(found, dict) else None
    if not isinstance(given, list) or not given:
        raise ParamsError(f"{path}: no list of deployments; {remedy}")
    specs = []
    for number, each in enumerate(given, 1):
        called = shown(each["name"]) if isinstance(each, dict) and "name" in each else f"number {number}"
        try:
            known = {key: value for key, value in each.items() if key not in UNUSED} if isinstance(each, dict) else each
            specs.append(Specification.model_validate(known))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(shown(part) for part in first["loc"]) or "it"
            said = shown(first["msg"].removeprefix("Value error, "), 300)
            raise ParamsError(f"{path}: deployment {called}: {field}: {said}; {remedy}") from error
    names = [(spec.flow_name, spec.name) for spec in specs]
    wanted = [(RETRAIN, RETRAIN)]
    if settings.train_deployment == train_deployment(settings):
        wanted.append((TRAIN, GPU))
    for flow, name in wanted:
        if (flow, name) not in names:
            raise ParamsError(f"{path}: no deployment named {name!r} of the flow {flow!r}, which is needed; {remedy}")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ParamsError(f"{path}: the deployment {'/'.join(twice)} is there twice; {remedy}")
    return [
        {
            **spec.model_dump(exclude_none=True),
            "parameters": {name: where if value == WHERE else value for name, value in spec.parameters.items()},
        }
        for spec in specs
    ]
