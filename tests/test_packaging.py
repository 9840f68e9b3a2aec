"""What pyproject.toml says is what the package is: dependencies, extras, floors, version, and the wheel."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, distribution, packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import instructrec_jax
from instructrec_jax.extras import EXTRAS

PACKAGE = Path(instructrec_jax.__file__).parent
ROOT = PACKAGE.parent


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    file = ROOT / "pyproject.toml"
    if not file.exists():
        pytest.skip("the package is installed without its repository")
    return tomllib.loads(file.read_text(encoding="utf-8"))


def names(requirements: list[str]) -> set[str]:
    """Normalized names of the distributions of requirements."""
    return {normal(re.match(r"[\w.-]+", line)[0]) for line in requirements}  # type: ignore[index]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imports(file: Path) -> list[tuple[str, bool]]:
    """(top-level package, whether it is imported at the top of the module) of all imports of others' packages."""
    found = []
    module = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            continue
        packages = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names - {"instructrec_jax"}
        found += [(package, node in module.body) for package in packages]
    return found


def is_lazy(file: Path) -> bool:
    """Whether a module is imported only where its extra is asked for: the service, and `evaluate --lm_eval`."""
    return file.relative_to(PACKAGE).parts[0] == "service" or file.stem == "lm_eval"


def test_everything_imported_is_declared(project: dict[str, Any]) -> None:
    base = names(project["project"]["dependencies"])
    distributions = packages_distributions()
    wrong = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for package, at_the_top in imports(file):
            known = {normal(name) for name in distributions.get(package, [package])}
            lazily = package in EXTRAS and (not at_the_top or is_lazy(file))
            if not known & base and not lazily:
                wrong.append(f"{file.relative_to(ROOT)}: {package}")
    assert wrong == []


def test_everything_declared_is_imported(project: dict[str, Any]) -> None:
    used = {package for file in PACKAGE.rglob("*.py") for package, _ in imports(file)}
    distributions = packages_distributions()
    provided = {normal(name) for package in used for name in distributions.get(package, [])}
    assert names(project["project"]["dependencies"]) <= provided


def test_extras_bring_what_they_are_named_for(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    other_names = {
        "PIL": "pillow",
        "lm_eval": "lm-eval",
        "opentelemetry": "opentelemetry-sdk",
        "stdnum": "python-stdnum",
    }
    for package, extra in EXTRAS.items():
        assert normal(other_names.get(package, package)) in names(extras[extra]), package


def test_imports_go_down_only() -> None:
    # a process of its own, because import-linter turns every logger off that exists when it starts
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout


def test_the_changelog_begins_with_this_version(project: dict[str, Any]) -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.search(r"^## (\S+)", text, re.MULTILINE)
    assert found and found[1] == instructrec_jax.__version__


def base_distributions(project: dict[str, Any]) -> dict[str, Distribution]:
    """The installed distributions that the base dependencies bring, theirs included."""
    found: dict[str, Distribution] = {}
    waiting = [Requirement(line) for line in project["project"]["dependencies"]]
    while waiting:
        wanted = waiting.pop()
        if normal(wanted.name) in found:
            continue
        found[normal(wanted.name)] = made = distribution(wanted.name)
        for line in made.requires or ():
            needed = Requirement(line)
            extras = wanted.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    return found


@pytest.fixture(scope="module")
def clean_site(project: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel, and links to the base dependencies: no extra, no test tool, not this checkout."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(PACKAGE, source / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels = source / "wheels"
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, source], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--no-compile", "-t", site, *wheels.iterdir()], check=True)
    for found in base_distributions(project).values():
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__", "bin"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))))
    return site


VERBS_OF_THE_WHEEL = """
import contextlib, io, sys
from pathlib import Path
import instructrec_jax
from instructrec_jax.__main__ import VERBS, main
assert Path(instructrec_jax.__file__).parent == Path(sys.argv[1]) / "instructrec_jax", instructrec_jax.__file__
for verb in VERBS:
    sys.argv = ["instructrec", verb, "--help"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main()
    assert said.getvalue().count("\\n") > 5 and verb in said.getvalue(), verb
missing = [name for name in ("torch", "pandas", "datasets", "sacrebleu") if name in sys.modules]
assert not missing, missing
sys.argv = ["instructrec", "train", "--run_dir", "run", "--steps", "2"]
main()
"""


@pytest.mark.slow
def test_every_verb_and_the_default_run_work_from_the_wheel_without_extras(clean_site: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "XLA_FLAGS"))}
    done = subprocess.run(
        [sys.executable, "-S", "-c", VERBS_OF_THE_WHEEL, clean_site],
        env=environment | {"PYTHONPATH": str(clean_site)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "report.html").exists() and (clean_site / "instructrec_jax" / "py.typed").exists()
    assert (clean_site / "bin" / "instructrec").exists()
