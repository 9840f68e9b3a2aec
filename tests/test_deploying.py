"""The files of examples/serving: what they name exists, and a linter has nothing to say."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from instructrec_jax.runs.config import parse
from instructrec_jax.service.app import make_app
from instructrec_jax.service.models import Service
from instructrec_jax.service.settings import ServeConfig

FOLDER = Path(__file__).parents[1] / "examples" / "serving"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the package is installed without its repository")


def test_the_dockerfile_passes_its_linter() -> None:
    if (linter := shutil.which("hadolint")) is None:
        pytest.skip("hadolint is not installed")
    ran = subprocess.run([linter, "--no-color", FOLDER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout


def test_the_settings_are_settings() -> None:
    config = parse(ServeConfig, ["--config_path", str(FOLDER / "serve.yaml")], default=None)
    assert [model.name for model in config.models] == ["", "", "chat"]


def test_kubernetes_probes_routes_that_exist() -> None:
    deployment, service = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8"))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    paths = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    app = make_app(Service(ServeConfig(), {}))
    assert paths <= set(app.openapi()["paths"])
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


def test_systemd_gives_requests_time_to_end() -> None:
    unit = (FOLDER / "instructrec.service").read_text(encoding="utf-8")
    settings = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line and not line.startswith("#"))
    limits = parse(ServeConfig, ["--config_path", str(FOLDER / "serve.yaml")], default=None).limits
    assert settings["KillSignal"] == "SIGTERM" and int(settings["TimeoutStopSec"]) > limits.seconds
