"""What `ssclass deploy` makes of a real Prefect server: names that say whose they are, pools that runs cannot bend."""

from __future__ import annotations

import re
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from ssclass.errors import ParamsError
from ssclass.settings import SETTINGS_FILE, load_settings
from ssclass.workspace.create import create, template_file
from tests.support.running import clean_environment

Api = Callable[..., Any]


@pytest.fixture
def api(prefect_url: str) -> Api:
    def ask(path: str, body: Any = None) -> Any:
        url = f"{prefect_url}/{path}"
        answer = requests.get(url, timeout=30) if body is None else requests.post(url, json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    return ask


@pytest.fixture
def name() -> str:
    """A name that no other test has taken on the session's server."""
    return f"shop-{uuid.uuid4().hex[:6]}"


def workspace(folder: Path, prefect_url: str, **values: str) -> Path:
    create(folder, {"prefect_url": prefect_url, **values})
    return folder


def deploy(folder: Path, check: bool = True, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ssclass", "deploy", *arguments, "--workspace", str(folder)]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


def automations(api: Api, name: str) -> dict[str, Any]:
    return {each["name"]: each for each in api("automations/filter", {}) if each["name"].startswith(f"{name}: ")}


def test_names_say_whose_they_are(tmp_path: Path, prefect_url: str, api: Api, name: str):
    folder = workspace(tmp_path / "shop", prefect_url, name=name)
    deploy(folder, True, "--notify", "http://127.0.0.1:9/hook")
    retrain = api(f"deployments/name/retrain/{name}")
    train = api(f"deployments/name/train/{name}-gpu")
    assert (retrain["work_pool_name"], train["work_pool_name"]) == (name, f"{name}-gpu")
    made = automations(api, name)
    assert len(made) == 5
    assert made[f"{name}: a batch arrived"]["trigger"]["match"] == {"prefect.resource.id": f"{name}.batch.*"}
    (notices,) = [each for called, each in made.items() if "notices" in called]
    assert notices["trigger"]["match"] == {"prefect.resource.id": f"{name}.*"}
    for called in ("a run that fell silent has crashed", "a crashed retrain runs again"):
        related = made[f"{name}: {called}"]["trigger"]["match_related"]["prefect.resource.id"]
        assert f"prefect.deployment.{retrain['id']}" in str(related)
    assert deploy(folder, True, "--notify", "http://127.0.0.1:9/hook").stdout.strip().endswith("nothing to change")


def test_notices_go_to_the_addresses_named_last(tmp_path: Path, prefect_url: str, api: Api, name: str):
    """Slack, Teams and Discord take what Apprise sends; an address that is no longer named gets nothing."""
    folder = workspace(tmp_path / "shop", prefect_url, name=name)

    def told() -> list[str]:
        return sorted(
            called.split("notices by ")[1].split()[0] for called in automations(api, name) if "notices" in called
        )

    deploy(folder, True, "--notify", "http://127.0.0.1:9/hook", "--notify", "mailto://127.0.0.1?to=a@example.org")
    assert told() == ["mail", "webhook"]
    slack = "https://hooks.slack.com/services/T0AAAAAAA/B0AAAAAAA/abcdefghijklmnopqrstuvwx"
    said = deploy(folder, True, "--notify", slack, "--notify", "discord://1234567890/abcdefghijklmnop").stdout
    assert told() == ["discord", "slack"]
    assert said.count("gone, as its address is") == 2
    assert "abcdefghijkl" not in said
    deploy(folder)
    assert told() == ["discord", "slack"], "nothing was said of notices"
    deploy(folder, True, "--notify", "none")
    assert told() == []


def test_another_workspaces_deployments_are_refused_by_its_name(tmp_path: Path, prefect_url: str, api: Api, name: str):
    one = workspace(tmp_path / "one", prefect_url, name=name, bucket="one")
    other = workspace(tmp_path / "other", prefect_url, name=name, bucket="other")
    deploy(one)
    before = api(f"deployments/name/retrain/{name}")
    done = deploy(other, False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert str(one) in line
    assert "name = " in line
    after = api(f"deployments/name/retrain/{name}")
    assert (after["parameters"], after["updated"]) == (before["parameters"], before["updated"]), "it was taken"
    settings = (other / SETTINGS_FILE).read_text().replace(f'name = "{name}"', f'name = "{name}-2"')
    (other / SETTINGS_FILE).write_text(settings)
    deploy(other)
    assert api(f"deployments/name/retrain/{name}-2")["parameters"]["workspace"] == str(other)
    assert api(f"deployments/name/retrain/{name}")["parameters"]["workspace"] == str(one)


def test_a_workspace_that_was_moved_or_cloned_is_still_itself(tmp_path: Path, prefect_url: str, api: Api, name: str):
    one = workspace(tmp_path / "one", prefect_url, name=name)
    deploy(one)
    one.rename(tmp_path / "moved")
    assert "changed parameters" in deploy(tmp_path / "moved").stdout
    clone = tmp_path / "clone"
    create(clone, {}, git=str(tmp_path / "one.git"))
    deploy(clone, True, "--git")
    assert api(f"deployments/name/retrain/{name}")["parameters"]["workspace"] == str(tmp_path / "one.git")


def test_what_an_older_version_made_goes_on_and_is_made_safe(tmp_path: Path, prefect_url: str, api: Api, name: str):
    """No label, a pool of Prefect's own template, job variables; the workspace's own prefect.yaml names them still."""
    folder = workspace(tmp_path / "shop", prefect_url, name=name)
    own = template_file("deployments.yaml").read_text()
    pool = 'work_pool: {name: ssclass, job_variables: {command: python -m prefect.engine, env: {A: "1"}}}'
    assert "work_pool: {name: ssclass}" in own
    (folder / "prefect.yaml").write_text(own.replace("work_pool: {name: ssclass}", pool))
    template = api("collections/views/aggregate-worker-metadata")["prefect"]["process"][
        "default_base_job_configuration"
    ]
    api("work_pools/", {"name": name, "type": "process", "base_job_template": template})
    flow = api("flows/", {"name": "retrain"})["id"]
    variables = {"command": "python -m prefect.engine"}
    old = {"name": name, "flow_id": flow, "work_pool_name": name, "job_variables": variables}
    api("deployments/", {**old, "parameters": {"workspace": str(folder)}})

    said = deploy(folder).stdout
    assert f"work pool {name}: its runs cannot change their command" in said
    deployment = api(f"deployments/name/retrain/{name}")
    assert deployment["job_variables"] == {}
    command = api(f"work_pools/{name}")["base_job_template"]["job_configuration"]["command"]
    assert command == "python -P -m prefect.engine"
    url = f"{prefect_url}/deployments/{deployment['id']}/create_flow_run"
    for variable in ("command", "env", "working_dir", "stream_output"):
        body = {"state": {"type": "SCHEDULED"}, "job_variables": {variable: "x"}}
        assert requests.post(url, json=body, timeout=30).status_code == 422, variable
    assert deploy(folder).stdout.strip().endswith("nothing to change")


def test_a_retrain_of_another_workspace_is_not_ours(tmp_path: Path, prefect_url: str, api: Api, name: str):
    """Each sweeps while the other retrains: two on one server, in a process each, as they would be."""
    one = workspace(tmp_path / "one", prefect_url, name=name, bucket="one")
    other = workspace(tmp_path / "other", prefect_url, name=f"{name}-2", bucket="other")
    deploy(one)
    deploy(other)
    deployment = api(f"deployments/name/retrain/{name}")["id"]
    program = """
import sys; from pathlib import Path
from ssclass.cli.common import settings_at
settings = settings_at(Path(sys.argv[1]))
from ssclass.stack.listening import retrain_under_way
print(retrain_under_way(settings))
"""

    def under_way(folder: Path) -> bool:
        command = [sys.executable, "-c", program, str(folder)]
        done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip() == "True"

    assert not under_way(one)
    api(f"deployments/{deployment}/create_flow_run", {"state": {"type": "PENDING"}})
    assert under_way(one)
    assert not under_way(other)
    flow = api("flows/", {"name": "retrain"})["id"]
    by_hand = {"flow_id": flow, "parameters": {"workspace": str(other)}, "state": {"type": "PENDING"}}
    api("flow_runs/", by_hand)
    assert under_way(other), "somebody runs `ssclass retrain` there"


@pytest.mark.parametrize("bad", ["Shop", "a.b", "", "-x", "a" * 41, "a/b", "ä"])
def test_a_name_that_is_none_is_named(tmp_path: Path, bad: str):
    from ssclass.errors import ParamsError

    (tmp_path / SETTINGS_FILE).write_text(f'name = "{bad}"\n')
    with pytest.raises(ParamsError, match="name"):
        load_settings(tmp_path)
    made = tmp_path / "made"
    command = [sys.executable, "-m", "ssclass", "init", str(made), "--name", bad]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "--name" in line
    assert "as in shop" in line
    assert not made.exists()


def test_init_gives_the_name_to_all_that_is_shared(tmp_path: Path):
    command = [sys.executable, "-m", "ssclass", "init", str(tmp_path / "x"), "--name", "shop-2"]
    subprocess.run(command, env=clean_environment(), capture_output=True, check=True)
    settings = load_settings(tmp_path / "x")
    assert (settings.name, settings.model_name) == ("shop-2", "shop-2")


def test_the_form_of_a_run_is_for_people(tmp_path: Path, prefect_url: str, api: Api, name: str):
    """Every field is described, none is internal; what only an automation gives is taken all the same."""
    deploy(workspace(tmp_path / "shop", prefect_url, name=name))
    made = api(f"deployments/name/retrain/{name}")
    fields = made["parameter_openapi_schema"]["properties"]
    assert set(fields) == {"workspace", "batch", "count"}
    assert all(field["description"] for field in fields.values())
    assert made["tags"] == [name]
    run = api(f"deployments/{made['id']}/create_flow_run", {"parameters": {"rerun": 2}})
    assert run["parameters"]["rerun"] == 2
    ended = automations(api, name)[f"{name}: a run that fell silent has crashed"]["trigger"]["expect"]
    assert {f"prefect.flow-run.{state}" for state in ("PROMOTED", "REJECTED", "HELD", "SKIPPED")} <= set(ended)


def test_prefects_own_deploy_finds_nothing_of_ours(tmp_path: Path, prefect_url: str, api: Api, name: str):
    """`prefect deploy --all` beside deployments.yaml leaves the deployments as they are."""
    folder = workspace(tmp_path / "shop", prefect_url, name=name)
    (folder / "deployments.yaml").write_text(template_file("deployments.yaml").read_text())
    deploy(folder)
    before = api(f"deployments/name/retrain/{name}")
    command = [str(Path(sys.executable).with_name("prefect")), "--no-prompt", "deploy", "--all"]
    environment = clean_environment(PREFECT_API_URL=prefect_url, PREFECT_HOME=str(tmp_path / "home"))
    subprocess.run(command, cwd=folder, env=environment, capture_output=True)
    after = api(f"deployments/name/retrain/{name}")
    assert {key: after[key] for key in ("updated", "parameters", "entrypoint")} == {
        key: before[key] for key in ("updated", "parameters", "entrypoint")
    }
    assert not list(folder.glob("prefect.yaml"))


OURS = "{name: retrain, flow_name: retrain, entrypoint: flows.retrain.retrain, work_pool: {name: ssclass}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("deployments: []", "no list of deployments"),
        ("", "no list of deployments"),
        ("- a", "no list of deployments"),
        ("deployments: {a: 1}", "no list of deployments"),
        ("deployments: [7]", "deployment number 1"),
        ("deployments: [{name: retrain}]", "deployment retrain: flow_name: Field required"),
        (f"deployments: [{OURS.replace('name: retrain', 'name: nightly', 1)}}}]", "no deployment named 'retrain'"),
        (f"deployments: [{OURS}}}, {OURS}}}]", "is there twice"),
        (f"deployments: [{OURS}, schedule: 1}}]", "deployment retrain: schedule: Extra inputs"),
        (f"deployments: [{OURS}, schedules: [{{cron: every day}}]}}]", "schedules"),
        (f"deployments: [{OURS}, schedules: [{{at: noon}}]}}]", "by cron, interval or rrule"),
        (f"deployments: [{OURS}, schedules: [{{cron: '1 1 * * *', timezone: Europe/Atlantis}}]}}]", "schedules"),
        (f"deployments: [{OURS}, triggers: [{{type: what}}]}}]", "triggers"),
        (f"deployments: [{OURS}, concurrency_limit: {{limit: many}}}}]", "concurrency_limit.limit"),
        (f"deployments: [{OURS}, parameters: 3}}]", "parameters"),
        (f"deployments: [{OURS.replace('flows.retrain', 'flows.nowhere')}}}]", "flows.nowhere.retrain: no flow"),
    ],
)
def test_an_unusable_file_is_one_sentence(tmp_path: Path, prefect_url: str, text: str, said: str):
    from ssclass.cli import cli

    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / SETTINGS_FILE).write_text(f'prefect_url = "{prefect_url}"\n')
    (folder / "deployments.yaml").write_text(text)
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    with pytest.raises(ParamsError, match=re.escape(said)):
        cli.main(["deploy", "--workspace", str(folder)], standalone_mode=False)
