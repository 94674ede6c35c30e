"""Bring a Prefect server up to deployments.yaml: pools, deployments, triggers. Doing it again changes nothing."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any
from uuid import UUID

from ssclass.environment import check_imports
from ssclass.errors import FailedError, ParamsError
from ssclass.names import automation_of, deployment_of, pool_of, resource_of
from ssclass.secrets import without_secrets
from ssclass.settings import DEFAULT_NAME, Settings
from ssclass.stack.automations import NOTICES_BY, crash_automations, notice_automations
from ssclass.stack.owner import LABEL, check_owner, owner_id
from ssclass.stack.specification import deployments_file, read_deployments
from ssclass.started import away
from ssclass.text import shown

POOL_TYPE = "process"
NOBODY = "none"
"""Instead of an address for notices: nobody is told any more."""
PAGE = 200  # automations that the server tells of at once
INTERNAL = ("rerun",)
"""Parameters of runs that no person sets; the server takes them all the same."""
POOL_TEMPLATE: dict[str, Any] = {
    # The pool says what is run and with which environment; it has no variable by which a run could say otherwise.
    # By default Prefect's process worker starts two more processes for a run, which find nothing to do here.
    # The heartbeats are what the automation "a run that fell silent" waits for; Prefect's default is 3 minutes.
    "job_configuration": {
        "command": "python -P -m prefect.engine",
        "env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30", "PYTHONSAFEPATH": "1"},
        "labels": {},
        "name": None,
        "stream_output": True,
        "working_dir": None,
    },
    "variables": {"type": "object", "properties": {}, "additionalProperties": False},
}


def deploy(settings: Settings, where: str, notify: list[str]) -> list[str]:
    """Make the server say what deployments.yaml says; one line for each thing that changed.

    `where`: what the runs are told of the workspace, its folder or a git URL. `notify`: URLs that get notices.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    check_imports()
    path = deployments_file(settings)
    wanted = read_deployments(path, where, settings)
    try:
        with get_client(sync_client=True) as client:
            return _Deployer(client, settings).all(wanted, notify)
    except PrefectHTTPStatusError as error:
        said = shown(without_secrets(error.response.text), 300)
        if error.response.status_code in (401, 403):
            raise FailedError(
                f"Prefect at {settings.prefect_url} wants a login; set PREFECT_API_AUTH_STRING or PREFECT_API_KEY"
            ) from error
        raise FailedError(f"Prefect refused {path}: {said}; correct it there") from error
    except (httpx.HTTPError, RuntimeError) as error:
        if helps := away(settings, "prefect_url"):
            raise FailedError(f"Prefect: {helps}") from error
        raise FailedError(
            f"Prefect at {settings.prefect_url}: {error}; start it with `ssclass up`, or correct prefect_url"
        ) from error


class _Deployer:
    def __init__(self, client: Any, settings: Settings) -> None:
        self.client = client
        self.settings = settings
        self.changes: list[str] = []
        self.foreign: set[str] = set()  # pools whose template is not ours

    def all(self, deployments: list[dict[str, Any]], notify: list[str]) -> list[str]:
        ids = {}
        for spec in deployments:
            self.check_owner(spec)
        for spec in deployments:
            self.pool(pool_of(self.settings, spec["work_pool"]["name"]))
        for spec in deployments:
            ids[spec["name"]] = self.deployment(spec)
        notices = notice_automations(self.settings, self.client, [url for url in notify if url != NOBODY])
        pools = {each["name"]: pool_of(self.settings, each["work_pool"]["name"]) for each in deployments}
        elsewhere = {name for name, pool in pools.items() if pool in self.foreign}
        for automation in crash_automations(self.settings, ids, elsewhere) + notices:
            self.automation(automation)
        if notify:
            self.only({each.name for each in notices}, automation_of(self.settings, NOTICES_BY))
        return self.changes

    def only(self, names: set[str], beginning: str) -> None:
        """Delete our automations whose names begin so, but for those with these names."""
        there: list[Any] = []
        while page := self.client.read_automations(limit=PAGE, offset=len(there)):
            there += page
        for each in there:
            if each.name.startswith(beginning) and each.name not in names:
                self.client.delete_automation(each.id)
                self.changes.append(f"automation {each.name!r}: gone, as its address is")

    def get(self, path: str, **query: Any) -> Any:
        return self.client.request("GET", path, params=query).json()

    def pool(self, name: str) -> None:
        from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
        from prefect.exceptions import ObjectNotFound

        try:
            there = self.client.read_work_pool(name)
        except ObjectNotFound:
            pool = WorkPoolCreate(name=name, type=POOL_TYPE, base_job_template=POOL_TEMPLATE)
            self.client.create_work_pool(pool)
            self.changes.append(f"work pool {name}: made, type {POOL_TYPE}")
            return
        if there.type != POOL_TYPE:  # a Kubernetes pool made by hand stays what it is
            self.foreign.add(name)
        elif any(there.base_job_template.get(key) != value for key, value in POOL_TEMPLATE.items()):
            self.client.update_work_pool(name, WorkPoolUpdate(base_job_template=POOL_TEMPLATE))
            self.changes.append(f"work pool {name}: its runs cannot change their command")

    def full_name(self, spec: dict[str, Any]) -> str:
        return f"{spec['flow_name']}/{deployment_of(self.settings, spec['name'])}"

    def check_owner(self, spec: dict[str, Any]) -> None:
        from prefect.exceptions import ObjectNotFound

        full = self.full_name(spec)
        with suppress(ObjectNotFound):
            there = self.client.read_deployment_by_name(full).model_dump(mode="json")
            check_owner(self.settings, full, there)

    def deployment(self, spec: dict[str, Any]) -> str:
        from prefect.exceptions import ObjectNotFound

        flow: Any = _flow(spec["entrypoint"])
        full, pool = self.full_name(spec), pool_of(self.settings, spec["work_pool"]["name"])
        limit = spec.get("concurrency_limit") or {}
        body = {
            "name": full.partition("/")[2],
            "labels": {LABEL: owner_id(self.settings)},
            "flow_id": str(self.client.create_flow_from_name(spec["flow_name"])),
            "entrypoint": spec["entrypoint"],
            "path": None,
            "pull_steps": [],
            "description": spec.get("description"),
            "tags": [self.settings.name if tag == DEFAULT_NAME else tag for tag in spec.get("tags", [])],
            "parameters": spec["parameters"],
            "parameter_openapi_schema": _form(flow),
            "enforce_parameter_schema": True,
            "work_pool_name": pool,
            "job_variables": spec["work_pool"].get("job_variables", {}) if pool in self.foreign else {},
            "schedules": [_schedule(each) for each in spec.get("schedules", [])],
            "concurrency_limit": limit.get("limit"),
            "concurrency_options": {"collision_strategy": limit["collision_strategy"]} if limit else None,
        }
        try:
            before = self.client.read_deployment_by_name(full).model_dump(mode="json")
        except ObjectNotFound:
            before = None
        changed = _differences(before, body)
        if before is None or changed:
            answer = self.client.request("POST", "/deployments/", json=body)
            answer.raise_for_status()
            identity = str(answer.json()["id"])
            self.changes.append(f"deployment {full}: {'made' if before is None else 'changed ' + ', '.join(changed)}")
        else:
            identity = str(before["id"])
        self.triggers(full, identity, spec.get("triggers", []))
        return identity

    def triggers(self, full: str, identity: str, specs: list[dict[str, Any]]) -> None:
        from prefect.events.schemas.deployment_triggers import DeploymentTriggerTypes
        from pydantic import TypeAdapter

        wanted = []
        for number, spec in enumerate(specs, 1):
            named = {**spec, "name": automation_of(self.settings, spec.get("name", f"{full} {number}"))}
            resource = (spec.get("match") or {}).get("prefect.resource.id")
            if isinstance(resource, str) and resource.startswith(f"{DEFAULT_NAME}."):
                named["match"] = {**spec["match"], "prefect.resource.id": resource_of(self.settings, resource)}
            trigger = TypeAdapter(DeploymentTriggerTypes).validate_python(named)
            trigger.set_deployment_id(UUID(identity))
            wanted.append(trigger.as_automation())
        owner = f"prefect.deployment.{identity}"
        there = [
            each for each in self.get(f"/automations/related-to/{owner}") if each["name"] in {w.name for w in wanted}
        ]
        if sorted(_core(each) for each in there) == sorted(_core(w.model_dump(mode="json")) for w in wanted):
            return
        self.client.delete_resource_owned_automations(owner)
        for each in wanted:
            self.client.create_automation(each)
        self.changes.append(f"deployment {full}: {len(wanted)} trigger(s) set")

    def automation(self, wanted: Any) -> None:
        there = self.client.read_automations_by_name(wanted.name)
        if any(_core(each.model_dump(mode="json")) == _core(wanted.model_dump(mode="json")) for each in there):
            return
        for each in there:
            self.client.delete_automation(each.id)
        self.client.create_automation(wanted)
        self.changes.append(f"automation {wanted.name!r}: {'changed' if there else 'made'}")


def _flow(entrypoint: str) -> Any:
    """The flow that an entrypoint names; ParamsError where there is none."""
    from prefect.flows import load_flow_from_entrypoint

    try:
        return load_flow_from_entrypoint(entrypoint)
    except Exception as error:  # whatever the import of a person's module does
        said = shown(error, 200)
        raise ParamsError(
            f"entrypoint {shown(entrypoint)}: no flow ({said}); ours are flows.retrain.retrain and flows.train.train"
        ) from error


def _form(flow: Any) -> dict[str, Any]:
    """The form of a run's parameters as people see it: without what only our automations give."""
    from prefect.utilities.callables import parameter_schema

    form = dict(parameter_schema(flow).model_dump(mode="json"))
    form["properties"] = {name: each for name, each in form["properties"].items() if name not in INTERNAL}
    return form


def _schedule(spec: dict[str, Any]) -> dict[str, Any]:
    slug = spec.get("slug")
    schedule = {name: value for name, value in spec.items() if name not in ("slug", "active", "parameters")}
    return {"schedule": schedule, "active": spec.get("active", True), "slug": slug, **(
        {"parameters": spec["parameters"]} if "parameters" in spec else {}
    )}  # fmt: skip


def _differences(before: dict[str, Any] | None, wanted: dict[str, Any]) -> list[str]:
    """Names of the fields that the server has otherwise."""
    if before is None:
        return []
    there = dict(before)
    there["flow_id"] = str(there["flow_id"])
    limit = (there.get("global_concurrency_limit") or {}).get("limit")
    there["concurrency_limit"] = limit if limit is not None else there.get("concurrency_limit")
    options = there.get("concurrency_options")
    there["concurrency_options"] = options and {"collision_strategy": options["collision_strategy"]}
    there["labels"] = {LABEL: (there.get("labels") or {}).get(LABEL)}
    there["pull_steps"] = there.get("pull_steps") or []
    there["schedules"] = [_brief(each) for each in there.get("schedules", [])]
    mine = {**wanted, "schedules": [_brief(each) for each in wanted["schedules"]]}
    return [name for name in mine if there.get(name) != mine[name]]


def _brief(schedule: dict[str, Any]) -> dict[str, Any]:
    inner = {name: value for name, value in schedule["schedule"].items() if value is not None and name != "day_or"}
    return {"schedule": inner, "active": schedule["active"], "slug": schedule.get("slug")}


def _core(automation: dict[str, Any]) -> str:
    """An automation without what the server adds, in one spelling."""
    kept = {name: automation.get(name) for name in ("name", "enabled", "trigger", "actions")}
    return json.dumps(_without_ids(kept), sort_keys=True, default=str)


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {name: _without_ids(each) for name, each in value.items() if name != "id"}
        # The server's trigger says by default what ours leaves out.
        return {name: each for name, each in kept.items() if each not in (None, [], {}, "")}
    if isinstance(value, list):
        found = [_without_ids(each) for each in value]
        return sorted(found, key=str) if all(isinstance(each, str) for each in found) else found
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
