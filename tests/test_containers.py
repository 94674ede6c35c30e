"""Dockerfile, compose.yaml and the Kubernetes pool, as far as they can be checked without an engine."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from ssclass.cli import cli
from ssclass.demo.drawings import draw
from ssclass.settings import CHECKOUT, Settings

DOCKERFILE = (CHECKOUT / "Dockerfile").read_text()
BESIDE = Path(sys.executable).parent  # hadolint and others
KUBERNETES = ("1.30", "1.34")
COMPOSE = yaml.safe_load((CHECKOUT / "compose.yaml").read_text())


def let_through() -> list[str]:
    """What .dockerignore, which refuses everything first, lets into the build."""
    lines = (CHECKOUT / ".dockerignore").read_text().split()
    assert lines[0] == "*"
    return [line[1:] for line in lines if line.startswith("!")]


def allowed(path: str) -> bool:
    return any(re.fullmatch(each.replace(".", r"\.").replace("*", ".*"), path) for each in let_through())


def test_what_the_dockerfile_copies_is_there_and_let_through():
    copied = [
        source
        for line in re.findall(r"^COPY (?!--)(.+)$", DOCKERFILE, re.M)
        for source in line.split()[:-1]
        if source != "."
    ]
    assert "requirements.lock" in copied
    for source in copied:
        assert (CHECKOUT / source).exists(), source
        assert allowed(source.split("/")[0]), source


def test_what_others_publish_is_named_by_its_content():
    ours = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.M))
    bases = [name for name in re.findall(r"^FROM (\S+)", DOCKERFILE, re.M) if name not in ours]
    bases += [each["image"] for each in COMPOSE["services"].values() if not each["image"].startswith("ssclass")]
    assert len(bases) >= 2
    assert all(re.fullmatch(r"[\w./:-]+@sha256:[0-9a-f]{64}", base) for base in bases), bases


def test_the_image_can_make_workspaces_and_deployments():
    for name in ("dvc.yaml", "data.dvc", "deployments.yaml", "flows", "tasks", "ssclass"):
        assert allowed(name), name


def test_the_images_are_not_roots():
    for target in ("cpu", "gpu"):
        stage = DOCKERFILE.split(f" AS {target}\n")[1].split("\nFROM ")[0]
        assert "USER 10001" in stage
        assert 'ENTRYPOINT ["ssclass"]' in stage


def test_the_images_have_the_packages_of_make_install():
    assert "RUN make install" in DOCKERFILE
    assert not re.search(r"pip install (?!.*--require-hashes)", DOCKERFILE)


def test_the_gpu_lock_adds_only_cuda_and_agrees_with_the_main_one():
    names = re.findall(r"^([a-z0-9-]+)==", (CHECKOUT / "requirements-gpu.lock").read_text(), re.M)
    assert len(names) > 8
    assert all(name.startswith("nvidia-") for name in names)


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_service_waits_for_services_that_are_there(name):
    service = COMPOSE["services"][name]
    for other, how in service.get("depends_on", {}).items():
        assert other in COMPOSE["services"]
        if how["condition"] == "service_healthy":
            assert "healthcheck" in COMPOSE["services"][other], f"{other} would never count as healthy"
    for volume in service.get("volumes", ()):
        source = volume.split(":")[0]
        assert source in COMPOSE["volumes"] or (CHECKOUT / source).exists()


def test_compose_runs_commands_and_settings_that_exist():
    def check(words: list[str]) -> None:
        command = cli
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        command.make_context(command.name, list(words), resilient_parsing=False)

    services = COMPOSE["services"]
    check(list(services["listener"]["command"]))
    script = (CHECKOUT / "containers" / "setup.sh").read_text()
    for line in re.findall(r"^ssclass (.+)$", script, re.M):
        check(shlex.split(line))
    known = {f"SSCLASS_{name.upper()}" for name in Settings.model_fields}
    known |= {"SSCLASS_WEBHOOK_SECRET", "SSCLASS_SERVE_KEY", "SSCLASS_HOME"}
    named = {name for each in services.values() for name in each.get("environment", {}) if name.startswith("SSCLASS_")}
    assert named
    assert named <= known
    assert set(re.findall(r"SSCLASS_[A-Z0-9_]+", script)) <= named
    for each in services.values():
        words = [*each.get("entrypoint", ()), *each.get("command", ())]
        for module in (word for word in words if word.startswith("ssclass.")):
            assert importlib.util.find_spec(module), module


def test_nothing_secret_has_a_default():
    text = (CHECKOUT / "compose.yaml").read_text()
    script = (CHECKOUT / "containers" / "secrets.sh").read_text()
    named = set(re.findall(r"\$\{(\w+)", text))
    assert {"POSTGRES_PASSWORD", "PREFECT_PASSWORD", "MLFLOW_PASSWORD", "GIT_PASSWORD", "S3_WORKER_PASSWORD"} <= named
    assert set(re.findall(r"\b[A-Z0-9_]+(?:PASSWORD|SECRET|KEY)\b", script)) == named, "each is made, and used"
    for name in named:
        assert re.search(r"\$\{" + name + r":\?", text)
        assert not re.search(r"\$\{" + name + r":?-", text)
    assert all(port.startswith("127.0.0.1:") for each in COMPOSE["services"].values() for port in each.get("ports", ()))


def test_every_password_is_explained():
    script = (CHECKOUT / "containers" / "secrets.sh").read_text()
    explained = re.findall(r"^# ([A-Z0-9_]+)= +\S", (CHECKOUT / ".env.example").read_text(), re.MULTILINE)
    assert sorted(explained) == sorted(re.findall(r"\b[A-Z0-9_]+(?:PASSWORD|SECRET|KEY)\b", script))


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_services_end_in_time_and_their_logs_and_caches_have_an_end(name):
    service = COMPOSE["services"][name]
    assert service["logging"]["options"]["max-size"]
    if service["image"].startswith("ssclass"):
        assert service["init"], "what its processes leave behind is nobody's otherwise"
        assert service["stop_grace_period"]
    if service.get("restart") == "unless-stopped":
        assert "healthcheck" in service
    if name == "s3":
        assert re.search(r"--cache-size [12]G\b", service["command"][0]), "JuiceFS would take 100 GB"


def test_a_person_sets_the_classes_and_submits_as_the_documentation_says(tmp_path: Path, s3, ssclass):
    """The origin, the bucket and the commands are real; the container is not."""
    created = tmp_path / "workspace"
    at = s3.settings
    environment = {"SSCLASS_BUCKET": s3.bucket, "SSCLASS_S3_ENDPOINT": at.s3_endpoint, "SSCLASS_S3_REGION": "us-east-1"}
    done = ssclass("init", created, "--bucket", s3.bucket, **environment)
    assert done.returncode == 0, done.stderr
    environment |= {"SSCLASS_GIT": f"{created}.git", "TMPDIR": str(tmp_path)}
    text = (CHECKOUT / "docs" / "running.md").read_text()
    said = re.findall(r"^    docker compose run .*setup (.+)$", text, re.MULTILINE)
    assert len(said) == 2
    draw(tmp_path / "photos", ("cat", "dog"), 3)
    for command in said:
        words = ["sh", str(CHECKOUT / "containers" / "person.sh"), *shlex.split(command)]
        words = [str(tmp_path / "photos") if word == "/photos" else word for word in words]
        done = subprocess.run(words, env=ssclass.environment(**environment), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    (batch,) = {item.key.split("/")[1] for item in s3.list("incoming/")}
    assert json.loads(s3.get(f"incoming/{batch}/manifest.json"))["photos"][0]["label"] in ("cat", "dog")


def test_passwords_are_made_once_for_their_owner(tmp_path: Path):
    (tmp_path / ".env").write_text("S3_PASSWORD=my-own\n")
    for _ in range(2):
        subprocess.run(["sh", CHECKOUT / "containers" / "secrets.sh"], cwd=tmp_path, check=True, umask=0o022)
    lines = (tmp_path / ".env").read_text().splitlines()
    made = dict(line.split("=", 1) for line in lines)
    assert len(lines) == len(made) == 14
    assert made["S3_PASSWORD"] == "my-own"
    assert len(set(made.values())) == 14
    assert all(re.fullmatch(r"[0-9a-f]{40}", value) for name, value in made.items() if name != "S3_PASSWORD")
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600


def test_no_password_of_compose_is_an_argument():
    """Arguments are everybody's to read on the machine; environments are their owner's."""
    for name, service in COMPOSE["services"].items():
        words = [*service.get("entrypoint", ()), *service.get("command", ())]
        assert not [word for word in words if "${" in word], name


def test_git_gives_the_login_to_its_own_host_only():
    environment = {"ORIGIN_HOST": "git:8418", "ORIGIN_USER": "pipeline", "ORIGIN_PASSWORD": "a secret"}

    def answer(prompt: str) -> str:
        command = ["sh", str(CHECKOUT / "containers" / "askpass.sh"), prompt]
        return subprocess.run(command, env=environment, capture_output=True, text=True).stdout

    assert answer("Username for 'http://git:8418': ") == "pipeline\n"
    assert answer("Password for 'http://pipeline@git:8418': ") == "a secret\n"
    for other in ("http://git:8418.example.org", "http://evil", "http://x@git:8418", "http://pipeline@git:84180"):
        assert answer(f"Password for '{other}': ") == ""


def test_hadolint_finds_nothing_in_the_dockerfile():
    assert linted(DOCKERFILE) == (0, "")
    assert "DL3020" in linted(DOCKERFILE.replace("COPY requirements", "ADD requirements", 1))[1]


def linted(dockerfile: str) -> tuple[int, str]:
    """hadolint's exit code and what it says of a Dockerfile."""
    command = [BESIDE / "hadolint", "--no-color", "-"]
    done = subprocess.run(command, input=dockerfile, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_compose_yaml_fits_the_compose_specification(tmp_path: Path):
    misspelt = tmp_path / "compose.yaml"
    misspelt.write_text((CHECKOUT / "compose.yaml").read_text().replace("depends_on:", "depend_on:", 1))
    command = [BESIDE / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, CHECKOUT / "compose.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run([*command, misspelt], capture_output=True, text=True)
    assert done.returncode == 1
    assert "depend_on" in done.stdout


def filled(template: Any, values: dict[str, Any]) -> Any:
    """A template with its blanks filled in, as Prefect does it: a text that is one blank becomes the value itself."""
    if isinstance(template, dict):
        return {name: filled(each, values) for name, each in template.items()}
    if isinstance(template, list):
        return [filled(each, values) for each in template]
    if isinstance(template, str):
        if blank := re.fullmatch(r"{{ (\w+) }}", template):
            return values[blank[1]]
        return re.sub(r"{{ (\w+) }}", lambda found: str(values[found[1]]), template)
    return template


def test_the_kubernetes_job_fits_the_schema_of_kubernetes():
    template = json.loads((CHECKOUT / "containers" / "kubernetes-pool.json").read_text())
    values = {name: each.get("default", "train") for name, each in template["variables"]["properties"].items()}
    job = filled(template["job_configuration"]["job_manifest"], values)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    container["env"] = [{"name": "PREFECT__FLOW_RUN_ID", "value": "x"}]  # Prefect's own, put there for each run
    for version in KUBERNETES:
        kubernetes_validate.validate(job, version, strict=True)
        container["resource"] = container.pop("resources")
        with pytest.raises(kubernetes_validate.ValidationError, match="'resource' was unexpected"):
            kubernetes_validate.validate(job, version, strict=True)
        container["resources"] = container.pop("resource")


def test_the_kubernetes_job_asks_for_a_gpu_and_its_blanks_can_be_filled():
    template = json.loads((CHECKOUT / "containers" / "kubernetes-pool.json").read_text())
    blanks = set(re.findall(r"{{ (\w+) }}", json.dumps(template["job_configuration"])))
    assert blanks == set(template["variables"]["properties"])
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"
    assert template["variables"]["properties"]["gpus"]["default"] == "1"
    assert pod["securityContext"]["runAsNonRoot"]


def test_no_run_says_what_a_job_of_kubernetes_runs():
    """Neither its image nor its command, environment, secret, account or namespace is a variable of a run."""
    template = json.loads((CHECKOUT / "containers" / "kubernetes-pool.json").read_text())
    assert template["variables"]["additionalProperties"] is False
    harmless = {"labels", "name", "finished_job_ttl", "job_watch_timeout_seconds", "pod_watch_timeout_seconds"}
    sizes = {"cpu", "memory", "memory_limit", "gpus", "image_pull_policy", "node_selector", "tolerations"}
    assert set(template["variables"]["properties"]) == {*harmless, *sizes, "stream_output"}


# -- Kubernetes: the Kustomize base, and the overlay of docs/kubernetes.md ----------------------------------------


def base() -> list[dict[str, Any]]:
    """Every object of the base, as its files have it."""
    listed = yaml.safe_load((CHECKOUT / "containers" / "kustomization.yaml").read_text())["resources"]
    return [
        each for name in listed for each in yaml.safe_load_all((CHECKOUT / "containers" / name).read_text()) if each
    ]


def pods() -> dict[str, dict[str, Any]]:
    """Name → pod of every Deployment of the base."""
    return {
        each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in base() if each["kind"] == "Deployment"
    }


def test_the_objects_of_the_base_fit_kubernetes():
    there = {path.relative_to(CHECKOUT / "containers").as_posix() for path in CHECKOUT.glob("containers/kubernetes/*")}
    listed = yaml.safe_load((CHECKOUT / "containers" / "kustomization.yaml").read_text())["resources"]
    assert set(listed) == there, "each file is listed"
    for made in base():
        for version in KUBERNETES:
            kubernetes_validate.validate(made, version, strict=True)
    misspelt = next(each for each in base() if each["kind"] == "Deployment")
    misspelt["spec"]["template"]["spec"]["serviceAccount_name"] = "ssclass"
    with pytest.raises(kubernetes_validate.ValidationError, match="serviceAccount_name"):
        kubernetes_validate.validate(misspelt, KUBERNETES[0], strict=True)


def test_what_the_base_names_is_there_and_its_images_exist():
    names = {(each["kind"], each["metadata"]["name"]) for each in base()}
    kustomization = yaml.safe_load((CHECKOUT / "containers" / "kustomization.yaml").read_text())
    assert kustomization["generatorOptions"]["disableNameSuffixHash"], "the pool's jobs name them as they are"
    names |= {("ConfigMap", each["name"]) for each in kustomization["configMapGenerator"]}
    template = json.loads((CHECKOUT / "containers" / "kubernetes-pool.json").read_text())["job_configuration"]
    assert template["namespace"] == kustomization["namespace"] == template["job_manifest"]["metadata"]["namespace"]
    for pod in (*pods().values(), template["job_manifest"]["spec"]["template"]["spec"]):
        assert ("ServiceAccount", pod["serviceAccountName"]) in names
        (container,) = pod["containers"]
        assert container["resources"]["limits"]["memory"]
        assert re.fullmatch(r"ssclass(:gpu)?|prefecthq/prefect:3\.8\.\d+-python3\.1\d-kubernetes", container["image"])
        for volume in pod["volumes"]:
            kind = "PersistentVolumeClaim" if "persistentVolumeClaim" in volume else "ConfigMap"
            assert (
                kind,
                volume.get("persistentVolumeClaim", {}).get("claimName") or volume["configMap"]["name"],
            ) in names
        for source in container.get("envFrom", ()):
            if "configMapRef" in source:
                assert ("ConfigMap", source["configMapRef"]["name"]) in names
    (pool,) = [each["files"] for each in kustomization["configMapGenerator"] if "files" in each]
    assert [f"--base-job-template=/etc/ssclass/{name}" for name in pool] == [
        word for word in pods()["job-worker"]["containers"][0]["command"] if "template" in word
    ]
    literals = [line for each in kustomization["configMapGenerator"] for line in each.get("literals", ())]
    known = {f"SSCLASS_{name.upper()}" for name in Settings.model_fields} | {"SSCLASS_HOME"}
    assert {line.split("=")[0] for line in literals if line.startswith("SSCLASS_")} <= known


def test_a_run_that_fetches_its_image_for_long_is_no_crash():
    """Only of processes it is known that they start within minutes; the job's own worker waits for half an hour."""
    from ssclass.stack.automations import crash_automations

    settings = Settings(workspace=CHECKOUT)
    ids = {"retrain": "00000000-0000-0000-0000-00000000000a", "gpu": "00000000-0000-0000-0000-00000000000b"}
    watched = {}
    for elsewhere in ((), ("gpu",), ("gpu", "retrain")):
        (made,) = [each for each in crash_automations(settings, ids, elsewhere) if "did not start" in each.name]
        watched[elsewhere] = made.model_dump(mode="json")["trigger"]["match_related"]["prefect.resource.id"]
    assert watched[()] == [f"prefect.deployment.{each}" for each in ids.values()]
    assert watched["gpu",] == [f"prefect.deployment.{ids['retrain']}"]
    assert watched["gpu", "retrain"] == ["prefect.deployment.none"]
    template = json.loads((CHECKOUT / "containers" / "kubernetes-pool.json").read_text())
    assert template["variables"]["properties"]["pod_watch_timeout_seconds"]["default"] >= 1800


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl, which has Kustomize")
def test_the_overlay_of_the_documentation_builds(tmp_path: Path):
    text = (CHECKOUT / "docs" / "kubernetes.md").read_text()
    (overlay,) = re.findall(r"```yaml title=\"my-cluster/kustomization.yaml\"\n(.*?)```", text, re.DOTALL)
    (sed,) = re.findall(r"^    (sed .*)$", text, re.MULTILINE)
    shutil.copytree(CHECKOUT / "containers", tmp_path / "containers")
    (tmp_path / "my-cluster").mkdir()
    (tmp_path / "my-cluster" / "kustomization.yaml").write_text(overlay)
    subprocess.run(["sh", "-c", sed], cwd=tmp_path, check=True)
    done = subprocess.run(["kubectl", "kustomize", "my-cluster"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = list(yaml.safe_load_all(done.stdout))
    for each in made:
        kubernetes_validate.validate(each, KUBERNETES[-1], strict=True)
    deployments = {each["metadata"]["name"]: each for each in made if each["kind"] == "Deployment"}
    assert set(deployments) == set(pods())
    images = {name: each["spec"]["template"]["spec"]["containers"][0]["image"] for name, each in deployments.items()}
    assert images["serve"] == images["listener"] == "registry.example.org/ssclass:0.1.0"
    (account,) = [each for each in made if (each["kind"], each["metadata"]["name"]) == ("ServiceAccount", "ssclass")]
    assert "eks.amazonaws.com/role-arn" in account["metadata"]["annotations"]
    data = {each["metadata"]["name"]: each["data"] for each in made if each["kind"] == "ConfigMap"}
    assert '"registry.example.org/ssclass:0.1.0-gpu"' in data["ssclass-pool"]["kubernetes-pool.json"]
    assert {"SSCLASS_GIT", "SSCLASS_BUCKET", "PREFECT_API_URL", "SSCLASS_HOME"} <= set(data["ssclass"])
    assert all(each["metadata"].get("namespace", "ssclass") == "ssclass" for each in made)


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("vendor.github-workflows", ".github/workflows/ci.yml"),
        ("vendor.dependabot", ".github/dependabot.yml"),
        ("vendor.citation-file-format", "CITATION.cff"),
    ],
)
def test_what_others_services_read_fits_their_schema(schema: str, file: str):
    command = [BESIDE / "check-jsonschema", "--builtin-schema", schema, CHECKOUT / file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
