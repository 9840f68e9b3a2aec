"""The launch scripts submit the right jobs, and these jobs work: run here with stubs of other tools."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from buckets import upload

import instructrec_jax
from instructrec_jax.distributed import launch

SCRIPTS = Path(instructrec_jax.__file__).parents[1] / "scripts" / "launch"
CLUSTERS = {
    "tpu_pod.sh": {"TPU": "pod", "ZONE": "us-east5-a", "PAUSE": "0"},
    "slurm.sh": {"NODES": "2", "GPUS": "4"},
    "kubernetes.sh": {"NAME": "tuning", "IMAGE": "registry/it:1", "CLAIM": "disk", "PODS": "4"},
}
ARGUMENTS = ["--config_path", "it's a file.yaml", "--data.test", '[{path: "a $HOME.jsonl"}]']  # nothing may expand


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = ["bash", str(SCRIPTS / script), *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=30)


def dry_run(script: str, run_dir: str, **environment: str) -> str:
    done = run(script, "--dry-run", "--run_dir", run_dir, *ARGUMENTS, **(CLUSTERS[script] | environment))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder of stubs; `python` and `python3` record their arguments and execute DO."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("python", "python3"):
        stand_in(folder, name, f'printf "%s\\n" "$@" > {tmp_path}/arguments; eval "$DO"')
    return folder


def stand_in(folder: Path, name: str, does: str) -> None:
    (folder / name).write_text(f"#!/usr/bin/env bash\n{does}\n")
    (folder / name).chmod(0o755)


def given(tmp_path: Path) -> list[str]:
    return (tmp_path / "arguments").read_text().splitlines()


def expected(run_dir: Path) -> list[str]:
    return ["-m", "instructrec_jax.train", "--run_dir", str(run_dir), *ARGUMENTS]


@pytest.mark.parametrize("script", CLUSTERS)
def test_scripts_are_sound_and_say_what_they_need(script: str) -> None:
    subprocess.run(["bash", "-n", str(SCRIPTS / script)], check=True)
    assert os.access(SCRIPTS / script, os.X_OK)
    assert {path.name for path in SCRIPTS.iterdir()} == set(CLUSTERS)
    missing = run(script, "--dry-run", "--config_path", "x.yaml", **CLUSTERS[script])
    assert missing.returncode == 2 and "--run_dir is missing" in missing.stderr and script in missing.stderr


def test_tpu_pod(tools: Path, tmp_path: Path) -> None:
    """On all workers, restarting until there is a report, which the second start writes."""
    command = shlex.split(dry_run("tpu_pod.sh", str(tmp_path), FOLDER=str(tmp_path)))
    assert command[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"]
    assert command[6:10] == ["--zone", "us-east5-a", "--worker", "all"] and command[10] == "--command"
    stand_in(tools, "gcloud", 'echo ssh >> "$(dirname "$0")/calls"; exec bash -c "${@: -1}"')
    second = f'if [ "$(wc -l < {tools}/calls)" -eq 2 ]; then touch {tmp_path}/report.html; fi'
    names = CLUSTERS["tpu_pod.sh"] | {"FOLDER": str(tmp_path), "DO": second, "PATH": f"{tools}:{os.environ['PATH']}"}
    done = run("tpu_pod.sh", "--run_dir", str(tmp_path), *ARGUMENTS, **names)
    assert done.returncode == 0 and "attempt 1 of 20 ended before the run was finished" in done.stderr
    assert given(tmp_path) == expected(tmp_path)
    assert len((tools / "calls").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("does", "status", "requeued"),
    [("touch RUN/report.html", 0, False), ("true", 0, True), ("exit 134", 134, True), ("exit 2", 2, False)],
)
def test_slurm(does: str, status: int, requeued: bool, tools: Path, tmp_path: Path) -> None:
    """One task per GPU; requeued while the run is unfinished, unless a restart would meet the same error."""
    job = dry_run("slurm.sh", str(tmp_path))
    wanted = {"--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--requeue", "--signal=TERM@300"}
    assert wanted <= {line.removeprefix("#SBATCH ") for line in job.splitlines()}
    stand_in(tools, "srun", '[ "$1" = --kill-on-bad-exit=1 ] && shift && exec "$@"')
    stand_in(tools, "scontrol", f'echo "$@" > {tmp_path}/requeued')
    names = {"DO": does.replace("RUN", str(tmp_path)), "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "-c", job], env=os.environ | names, timeout=30)
    assert done.returncode == status and given(tmp_path) == expected(tmp_path)
    assert (tmp_path / "requeued").exists() == requeued


def kubernetes(run_dir: str) -> tuple[Any, Any]:
    service, job = yaml.safe_load_all(dry_run("kubernetes.sh", run_dir, NODES='{"pool": "h100"}'))
    return service, job


def test_kubernetes_manifest() -> None:
    """An indexed job with a headless service, so that the other pods reach the first one by name."""
    service, job = kubernetes("/shared/run")
    spec = job["spec"]
    pod = spec["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"] and pod["nodeSelector"] == {"pool": "h100"}
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    (container,) = pod["containers"]
    environment = {entry["name"]: entry.get("value", "3") for entry in container["env"]}
    settings = launch.settings_from(environment)
    assert settings is not None and settings["coordinator_address"] == "tuning-0.tuning:8476"
    assert (settings["process_id"], settings["num_processes"]) == (3, 4)
    assert container["args"][2:] == ["--run_dir", "/shared/run", *ARGUMENTS]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts["shared"] == "/shared" and {volume["name"] for volume in pod["volumes"]} == set(mounts)


@pytest.mark.parametrize(
    ("does", "status"), [("touch RUN/report.html", 0), ("true", 75), ("exit 2", 2), ("exit 134", 134)]
)
def test_a_pod_ends_well_only_when_the_run_is_done(does: str, status: int, tools: Path, tmp_path: Path) -> None:
    done = start_pod(tools, tmp_path, does.replace("RUN", str(tmp_path)))
    assert done.wait(30) == status and given(tmp_path)[2:] == ["--run_dir", "/shared/run", *ARGUMENTS]


def test_a_pod_passes_sigterm_on_and_waits(tools: Path, tmp_path: Path) -> None:
    does = f"trap 'sleep 0.3; touch {tmp_path}/saved; exit 0' TERM; touch {tmp_path}/up; while :; do sleep 0.05; done"
    done = start_pod(tools, tmp_path, does)
    deadline = time.monotonic() + 30
    while not (tmp_path / "up").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    done.send_signal(signal.SIGTERM)
    assert done.wait(30) == 75 and (tmp_path / "saved").exists()


def start_pod(tools: Path, tmp_path: Path, does: str) -> subprocess.Popen:
    """The container's command, run here, with a report of the run in `tmp_path`."""
    container = kubernetes("/shared/run")[1]["spec"]["template"]["spec"]["containers"][0]
    script, *arguments = container["args"]
    script = script.replace("/shared/run/report.html", str(tmp_path / "report.html"))
    names = {"DO": does, "PATH": f"{tools}:{os.environ['PATH']}"}
    return subprocess.Popen([*container["command"], script, *arguments], env=os.environ | names)


@pytest.mark.parametrize("script", CLUSTERS)
def test_the_report_of_a_run_in_a_bucket_ends_the_restarts(script: str, bucket: str) -> None:
    """The scripts look for it as this command does; no volume is needed."""
    shown = dry_run(script, f"{bucket}/run", CLAIM="")
    text = shlex.split(shown)[-1] if script == "tpu_pod.sh" else shown
    asks = re.search(r"python3? (-c '[^']+' \S+/report\.html)", text)
    assert asks is not None, text
    looks = ["bash", "-c", f"{sys.executable} {asks[1]}"]
    assert subprocess.run(looks, timeout=60).returncode == 1
    upload(b"<html>", f"{bucket}/run/report.html")
    assert subprocess.run(looks, timeout=60).returncode == 0
    assert "/shared" not in shown


def test_kubernetes_needs_a_volume_or_a_bucket() -> None:
    done = run("kubernetes.sh", "--dry-run", "--run_dir", "/shared/run", IMAGE="it", CLAIM="")
    assert done.returncode == 2 and "set CLAIM, or name a run_dir in a bucket" in done.stderr
    manifest = dry_run("kubernetes.sh", "s3://bucket/run", CLAIM="")
    pod = list(yaml.safe_load_all(manifest))[1]["spec"]["template"]["spec"]
    assert [volume["name"] for volume in pod["volumes"]] == ["memory"]
    assert [mount["name"] for mount in pod["containers"][0]["volumeMounts"]] == ["memory"]
