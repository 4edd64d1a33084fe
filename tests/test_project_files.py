"""What CONTRIBUTING.md, CITATION.cff and the dev container name is there, and agrees with the rest of the project."""

import json
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from check_notebooks import MAX_LESSON
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
VENV = re.search(r"^VENV := (\S+)$", MAKEFILE, re.MULTILINE)[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def make_targets():
    variables = {f"$({name})": value for name, value in re.findall(r"^(\w+) := (.*)$", MAKEFILE, re.MULTILINE)}
    targets = re.findall(r"^([\w$()-]+):", MAKEFILE, re.MULTILINE)
    return {variables.get(one, one).replace("$(VENV)", VENV) for one in targets}


def check_command(command):
    """See that the programs, files and targets of a command exist."""
    for part in command.split("&&"):
        words = [word for word in part.split() if not re.match(r"[A-Z_]+=", word)]
        if words[0] == "make":
            assert set(words[1:]) <= make_targets(), command
        elif words[0] == f"{VENV}/bin/python":
            if words[1] == "-m":
                assert find_spec(words[2]), command
            files = [word for word in words[1:] if "/" in word]
            assert files or words[1] == "-m", command
            assert all((ROOT / file).exists() for file in files), command
        else:
            assert words[0] == "export", command


def contributing_commands():
    tokens = MarkdownIt().parse((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    lines = "".join(token.content for token in tokens if token.type == "code_block").splitlines()
    return [re.sub(r"\s+# .*", "", line).strip() for line in lines if not line.startswith('"symptom"')]


def test_a_command_that_does_not_exist_is_noticed():
    for wrong in ("make tea", f"{VENV}/bin/python -m no_such_module", f"{VENV}/bin/python tools/no_such.py", "rm x"):
        with pytest.raises(AssertionError):
            check_command(wrong)


@pytest.mark.parametrize("command", contributing_commands())
def test_a_command_of_the_contributors_page(command):
    check_command(command)


def test_the_contributors_page_states_the_limits_that_are_checked():
    text = " ".join((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split())
    assert all(f"{limit:,} {what}" in text for what, limit in MAX_LESSON.items())
    for name in re.findall(r"`((?:notebooks|tests|tools|helpers)/[\w./]*)`", text):
        assert (ROOT / name).exists(), name
    assert len(text.split()) < 600, "one page"


def test_the_dev_container_sets_up_the_course():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    python = re.fullmatch(r"mcr\.microsoft\.com/devcontainers/python:(3\.\d+)", container["image"])[1]
    assert f"PYTHON=python{python}" in container["postCreateCommand"]
    assert python in re.search(r'versions="([\d. ]+)"', (ROOT / "tools" / "set_up.sh").read_text())[1].split()
    check_command(container["postCreateCommand"])
    editor = container["customizations"]["vscode"]
    assert editor["settings"]["python.defaultInterpreterPath"].endswith(f"/{VENV}/bin/python")


def test_the_citation_agrees_with_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(citation)
    assert citation["title"].lower().replace(" ", "-") == PROJECT["name"]
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["abstract"] == PROJECT["description"]
    (author,) = citation["authors"]
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert re.search(r"^Copyright \d+ (.*)\.$", licence, re.MULTILINE)[1].lower() == author["name"].lower()
