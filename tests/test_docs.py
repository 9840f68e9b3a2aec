"""README and docs do what they say: every block of commands, settings and Python runs here, with small data.

A block that cannot run has a comment right above it, `<!-- not run: why -->`; its verbs and options are checked all the
same. Networks of the hub are tiny folders of the same name, data sets tiny files of the same name, and training takes
two steps.
"""

import inspect
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import docs_world
import pytest

import instructrec_jax.train as training
from instructrec_jax.__main__ import VERBS
from instructrec_jax.answering import arguments
from instructrec_jax.answering.prepare_arguments import FORMATS
from instructrec_jax.parsing import parse_yaml
from instructrec_jax.runs.config import Config, load, setting_names
from instructrec_jax.runs.given import Given
from instructrec_jax.service.settings import ServeConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN, SHOWN = ("sh", "yaml", "python"), ("text", "json", "{toctree}", "{include}")
REASON = re.compile(r"<!-- not run: (.+) -->")
VERB = re.compile(r"python -m instructrec_jax\.(\w+)(.*)")
SMALLER = {
    "new_language_model.py": "--vocab_size 300 --hidden_size 32 --num_layers 2 --num_heads 2 --mlp_size 48".split()
}


@dataclass(frozen=True)
class Block:
    where: str
    language: str
    text: str
    reason: str | None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found, lines, number = [], page.read_text(encoding="utf-8").split("\n"), 0
    while number < len(lines):
        if lines[number].startswith("```"):
            end = lines.index("```", number + 1)
            reason = REASON.fullmatch(lines[number - 1])
            text = "\n".join(lines[number + 1 : end])
            where = f"{page.name}:{number + 1}"
            found.append(Block(where, lines[number][3:].split(" ")[0], text, reason and reason[1]))
            number = end
        number += 1
    return found


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a shell block, as lists of words; a here-document is `cat FILE TEXT`."""
    lines = iter(text.replace("\\\n", " ").split("\n"))
    for line in lines:
        if here := re.fullmatch(r"cat > (\S+) <<(\w+)", line):
            inside: list[str] = []
            while (below := next(lines)) != here[2]:
                inside.append(below)
            yield ["cat", here[1], "\n".join([*inside, ""])]
            continue
        words = shlex.split(line, comments=True)
        if words:
            yield words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs_or_says_why_not(page: Path) -> None:
    for block in blocks(page):
        assert block.language in RUN + SHOWN, f"{block.where}: a block is one of {', '.join(RUN + SHOWN)}"
        if block.language == "json":
            for line in [block.text] if block.text.count("\n}") else block.text.split("\n"):
                json.loads(line)
    outside = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    indented = re.search(r"\n\n    \S.*", outside)
    assert indented is None, f"{page.name}: fence this block: {indented and indented[0]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_exists(page: Path) -> None:
    for block in blocks(page):
        for verb, rest in VERB.findall(block.text.replace("\\\n", " ") if block.language == "sh" else ""):
            assert verb in VERBS, f"{block.where}: there is no verb {verb}"
            words = shlex.split(rest.split(" &&")[0], comments=True)
            for word in words:
                name = word[2:].split("=")[0]
                assert not word.startswith("--") or name in options(verb, words), f"{block.where}: {verb} has no {word}"
                assert not word.startswith("configs/") or (ROOT / word).exists(), f"{block.where}: no file {word}"


def options(verb: str, words: list[str]) -> set[str]:
    """Names that a verb takes after `--`."""
    if verb == "prepare":
        return set(setting_names(FORMATS[words[0]]))
    if verb == "serve":
        keys = (ROOT / "instructrec_jax" / "service" / "key_commands.py").read_text(encoding="utf-8")
        return {*setting_names(ServeConfig), "config_path", "help", *re.findall(r'"--(\w+)"', keys)}
    make: Callable[..., Any] | None = getattr(arguments, f"{verb}_parser", None)
    source = (ROOT / "instructrec_jax" / f"{verb}.py").read_text(encoding="utf-8")
    own = set(re.findall(r'"(--\w+)"', source))
    if make is not None:
        own |= set(make(*[""] * len(inspect.signature(make).parameters))._option_string_actions)
    return {name.lstrip("-") for name in own} | set(setting_names(Config)) | {"config_path", "help"}


def headings(page: Path) -> set[str]:
    """The names that links give to a page's headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.*)$", without_code(page), re.M)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title.strip().lower()) for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


def without_code(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for file, heading in re.findall(r"\]\(([\w./-]*)(#[\w-]+)?\)", without_code(page)):
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name} links to {file}"
        assert not heading or heading[1:] in headings(target), f"{page.name} links to {file}{heading}"


def test_readme_is_short() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 130


# ------------------------------------------------------------------ running them


@pytest.fixture(scope="module")
def small_training() -> Iterator[None]:
    """Training takes two steps of eight examples, or of eight rows of at most 128 tokens."""
    whole = training.train

    def train(config: Config, given: Given | None = None) -> Path:
        data = replace(config.data, max_length=min(config.data.max_length, 128))
        data = replace(data, batch_rows=8) if data.batch_rows else replace(data, batch_size=8)
        tracking = replace(config.tracking, tensorboard=False)
        evaluation = replace(config.evaluation, max_examples=4)
        return whole(replace(config, steps=2, data=data, tracking=tracking, evaluation=evaluation), given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train", train)
        yield


@pytest.fixture(scope="module")
def world(small_training: None, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which pages find what they name, with the default run in it."""
    folder = tmp_path_factory.mktemp("docs")
    docs_world.build(folder, ROOT, tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        training.main([])
    return folder


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language in RUN and block.reason is None]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=lambda page: page.name)
def test_runs(page: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(world, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    trained = {
        word for block in runnable(page) if block.language == "sh" for word in shlex.split(block.text, comments=True)
    }
    for block in runnable(page):
        print(f"{block.where}:\n{block.text}")  # shown where it fails
        if block.language == "python":
            exec(compile(block.text, block.where, "exec"), names)
        elif block.language == "yaml":
            run_settings(block, trained)
        else:
            for words in commands(block.text):
                run_command(words, block, monkeypatch)


def run_settings(block: Block, trained: set[str]) -> None:
    """Writes a YAML block into the file that its first line names; trains on settings that no command trains on."""
    name = block.text.split("\n")[0].removeprefix("# ")
    assert re.fullmatch(r"\w+\.yaml", name), f"{block.where}: its first line should name its file, as `# x.yaml`"
    Path(name).write_text(block.text + "\n", encoding="utf-8")
    if "run_dir" in parse_yaml(block.text, block.where):
        load(name)
        if name not in trained:
            training.main(["--config_path", name])


def run_command(words: list[str], block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    if words[0] == "cat" and len(words) == 3:
        Path(words[1]).write_text(words[2], encoding="utf-8")
    elif words[:2] == ["python", "-m"]:
        import_module(words[2]).main(words[3:])
    elif words[0] == "python":
        monkeypatch.setattr(sys, "argv", [words[1], *words[2:], *SMALLER.get(Path(words[1]).name, [])])
        runpy.run_path(words[1], run_name="__main__")
    else:
        pytest.fail(
            f"{block.where}: this test cannot run `{' '.join(words)}`: say why above it, `<!-- not run: ... -->`"
        )


# ------------------------------------------------------------------ examples/

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(world, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")


def test_examples_are_short() -> None:
    assert len(EXAMPLES) >= 3
    for path in EXAMPLES:
        assert path.read_text(encoding="utf-8").count("\n") < 60, path.name


# ------------------------------------------------------------------ the site


def test_reference_has_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    page = import_module("reference").settings_page()
    # the entries of data.validation and data.test are those of data.train, and tasks inside of tasks are tasks
    skipped = ("data.validation.", "data.test.", "task.tasks.task.")
    names = [name for name in setting_names(Config, lists=True) if not name.startswith(skipped)]
    missing = {name for name in names if f"`{name}`" not in page and f"\n## {name}\n" not in page}
    assert not {name for name in missing if not name.endswith(".type")}


@pytest.mark.slow
def test_the_site_builds_without_a_warning_or_a_foreign_font(tmp_path: Path) -> None:
    for extra in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(extra)
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(ROOT / "docs"), str(tmp_path)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])})
    loaded = re.compile(
        r"""(?:<link[^>]*rel="(?:stylesheet|pre\w+)[^>]*href=|<script[^>]*src=|url\()["']?(?:https?:)?//"""
    )
    for file in [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.css")]:
        assert not loaded.search(file.read_text(encoding="utf-8")), file
