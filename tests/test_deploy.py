"""The manifests and the image of lesson 09: valid, and in agreement with each other and with the commands they run."""

import argparse
import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from helpers import service

ROOT = Path(__file__).resolve().parents[1]
KUBERNETES = "1.34"
COMPOSE_KEYS = {
    "build", "command", "depends_on", "deploy", "healthcheck", "image", "init", "networks", "restart",
    "stop_grace_period", "volumes",
}  # fmt: skip
HEALTH_KEYS = {"test", "interval", "timeout", "retries", "start_period"}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}
RESTARTS = re.compile(r"no|always|unless-stopped|on-failure(:\d+)?")
DURATION = re.compile(r"(\d+h)?(\d+m)?(\d+s)?")


@pytest.fixture(scope="module")
def manifests():
    documents = yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text())
    return {(one["kind"], one["metadata"]["name"]): one for one in documents}


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())


def pod(manifest):
    return manifest["spec"]["template"]["spec"]


def container(manifest):
    (only,) = pod(manifest)["containers"]
    return only


def locked(package):
    lock = (ROOT / "requirements.txt").read_text()
    return re.search(rf"^{package}==(\S+)", lock, re.MULTILINE)[1]


def parsed(command):
    """Return what `helpers.service` understands of a command of a manifest."""
    if command[0] == "sh":
        command = command[2].removeprefix("exec ").split()
    assert command[:3] == ["python", "-m", "helpers.service"]
    return service._parse(command[3:])


# ---- Kubernetes ------------------------------------------------------------------------------------------------------


def test_manifests_pass_the_schemas(manifests):
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_the_validator_finds_a_misspelt_field(manifests):
    worker = manifests["StatefulSet", "worker"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**worker, "spec": {**worker["spec"], "replica": 4}}, KUBERNETES, strict=True)


def test_workers_keep_their_names(manifests):
    worker, names = manifests["StatefulSet", "worker"], manifests["Service", "workers"]
    assert worker["spec"]["serviceName"] == names["metadata"]["name"]
    assert names["spec"]["clusterIP"] == "None"
    assert names["spec"]["publishNotReadyAddresses"] is True
    options = parsed([*container(worker)["command"], *container(worker)["args"]])
    assert options.address == "$(POD_NAME).workers:5051"
    (name,) = container(worker)["env"]
    assert (name["name"], name["valueFrom"]["fieldRef"]["fieldPath"]) == ("POD_NAME", "metadata.name")


def test_services_select_their_pods_and_their_ports(manifests):
    for name, of in (("dispatcher", "dispatcher"), ("workers", "worker")):
        spec, workload = manifests["Service", name]["spec"], manifests["StatefulSet", of]
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert spec["selector"].items() <= labels.items()
        assert workload["spec"]["selector"]["matchLabels"].items() <= labels.items()
        (port,), (own,) = spec["ports"], container(workload)["ports"]
        assert (port["targetPort"], port["port"]) == (own["name"], own["containerPort"])


def test_one_dispatcher_with_a_journal_that_outlives_it(manifests):
    dispatcher = manifests["StatefulSet", "dispatcher"]
    assert dispatcher["spec"]["replicas"] == 1
    options = parsed(container(dispatcher)["command"])
    (claim,) = dispatcher["spec"]["volumeClaimTemplates"]
    (mount,) = container(dispatcher)["volumeMounts"]
    assert (str(options.work_dir), claim["metadata"]["name"]) == (mount["mountPath"], mount["name"])
    assert options.port == container(dispatcher)["ports"][0]["containerPort"]


@pytest.mark.parametrize("name", ["dispatcher", "worker"])
def test_servers_are_probed_by_a_command_that_exists(manifests, name):
    server = container(manifests["StatefulSet", name])
    for probe in ("startupProbe", "readinessProbe"):
        options = parsed(server[probe]["exec"]["command"])
        assert options.run is service._check
        address = options.worker or options.dispatcher
        assert address == f"localhost:{server['ports'][0]['containerPort']}"
        assert server[probe]["timeoutSeconds"] > service._PROBE_S
        assert options.workers is None  # a dead worker must not take the dispatcher's address away
    assert server["livenessProbe"]["tcpSocket"]["port"] == server["ports"][0]["name"]


def test_all_pods_run_one_image_without_rights(manifests):
    workloads = [one for one in manifests.values() if "template" in one["spec"]]
    assert len(workloads) == 3
    assert {container(one)["image"] for one in workloads} == {f"feeding-images:{locked('tensorflow')}"}
    for one in workloads:
        assert pod(one)["securityContext"]["runAsNonRoot"] is True
        assert container(one)["securityContext"]["allowPrivilegeEscalation"] is False
        mounted = {mount["name"] for mount in container(one)["volumeMounts"]}
        claimed = {claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", [])}
        assert mounted == claimed | {volume["name"] for volume in pod(one).get("volumes", [])}


def test_the_job_waits_for_all_workers_and_ends(manifests):
    job = manifests["Job", "trainer"]
    arguments = container(job)["args"]
    assert arguments[arguments.index("--workers") + 1] == str(manifests["StatefulSet", "worker"]["spec"]["replicas"])
    assert job["spec"]["activeDeadlineSeconds"] > 0
    assert pod(job)["restartPolicy"] == "Never"


# ---- Compose ---------------------------------------------------------------------------------------------------------


def test_compose_has_only_what_compose_knows(compose):
    assert compose.keys() <= {"name", "services", "networks", "volumes", "x-server"}
    for name, one in compose["services"].items():
        assert one.keys() <= COMPOSE_KEYS, name
        assert RESTARTS.fullmatch(one["restart"]), name
        health = one.get("healthcheck", {})
        assert health.keys() <= HEALTH_KEYS
        durations = [
            one["stop_grace_period"],
            *(health[key] for key in health.keys() & (HEALTH_KEYS - {"test", "retries"})),
        ]
        assert all(DURATION.fullmatch(duration) for duration in durations), name
        for other, how in one.get("depends_on", {}).items():
            assert how["condition"] in CONDITIONS
            assert other in compose["services"]
            assert how["condition"] != "service_healthy" or "healthcheck" in compose["services"][other]
        assert set(one["networks"]) <= compose["networks"].keys()


def test_compose_mounts_what_is_there(compose):
    for one in compose["services"].values():
        for mount in one["volumes"]:
            source, target, *mode = mount.split(":")
            assert source in compose["volumes"] or (ROOT / "deploy" / source).resolve().parent == ROOT
            assert target.startswith("/")
            assert mode in ([], ["ro"])


def test_compose_starts_the_servers_and_asks_them(compose):
    services = compose["services"]
    dispatcher, worker = parsed(services["dispatcher"]["command"]), parsed(services["worker"]["command"])
    assert worker.dispatcher == f"dispatcher:{dispatcher.port}"
    assert worker.address == "$$HOSTNAME:5051"  # two dollars: the shell's variable, not that of compose
    assert f"journal:{dispatcher.work_dir}" in services["dispatcher"]["volumes"]
    assert parsed(services["dispatcher"]["healthcheck"]["test"][1:]).dispatcher == f"localhost:{dispatcher.port}"
    assert parsed(services["worker"]["healthcheck"]["test"][1:]).worker == "localhost:5051"


def test_trainers_give_options_that_the_trainer_has(compose, manifests):
    known = set(re.findall(r'"(--[a-z]+)"', (ROOT / "deploy" / "trainer.py").read_text()))
    job = container(manifests["Job", "trainer"])
    for command in (compose["services"]["trainer"]["command"], [*job["command"], *job["args"]]):
        assert command[:2] == ["python", "deploy/trainer.py"]
        assert {word for word in command if word.startswith("--")} <= known


# ---- the image -------------------------------------------------------------------------------------------------------


def test_the_image_is_built_from_the_lock_and_runs_without_rights():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    instructions = [line.split()[0] for line in lines if re.match(r"[A-Z]+ ", line)]
    assert instructions[0] == "FROM"
    assert instructions.index("USER") > max(place for place, name in enumerate(instructions) if name == "RUN")
    assert instructions.count("CMD") == 1
    text = "\n".join(lines)
    assert "COPY requirements.txt" in text
    assert re.search(r"^USER (?!root)", text, re.MULTILINE)
    python = re.search(r"^FROM python:(\d+)\.(\d+)-slim@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert (3, 11) <= tuple(map(int, python.groups())) < (3, 14)


def test_the_image_is_built_without_what_is_made_here():
    left_out = set((ROOT / ".dockerignore").read_text().split())
    assert {".git", ".venv", "build", "data", "results/local"} <= left_out
    for needed in ("helpers", "notebooks", "deploy", "requirements.txt", "pyproject.toml", "data_scripts"):
        assert needed not in left_out


def test_the_command_of_a_manifest_must_exist():
    with pytest.raises((SystemExit, argparse.ArgumentError)):
        parsed(["python", "-m", "helpers.service", "dispatch"])
