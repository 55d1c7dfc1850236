"""The workflow is read as GitHub reads it, and what it runs is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml
from typer.main import get_command

from avloc.cli import app
from avloc.names import find_config

ROOT = Path(__file__).resolve().parents[1]


def workflow() -> dict[str, Any]:
    return yaml.load((ROOT / ".github" / "workflows" / "ci.yml").read_text(), yaml.BaseLoader)  # "on" stays a word


def commands() -> list[list[str]]:
    """The words of every command of every job."""
    lines = [step["run"] for job in workflow()["jobs"].values() for step in job["steps"] if "run" in step]
    return [shlex.split(part) for line in lines for part in line.split(" && ")]


def test_the_jobs_and_when_they_run() -> None:
    read = workflow()
    assert set(read["jobs"]) == {"test", "slow", "without-extras", "lower-bounds"}
    assert set(read["on"]) == {"push", "pull_request", "schedule"}
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", read["on"]["schedule"][0]["cron"])  # weekly
    assert read["jobs"]["slow"]["if"] == "github.event_name == 'schedule'"
    for job in read["jobs"].values():
        assert job["runs-on"] == "ubuntu-latest"
        assert 0 < int(job["timeout-minutes"]) <= 60
        assert [set(step) - {"with"} for step in job["steps"]][:2] == [{"uses"}, {"uses"}]
        assert {key for step in job["steps"] for key in step} <= {"uses", "with", "run"}


def test_what_it_runs_is_there() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    known = get_command(app).commands  # type: ignore[attr-defined]
    seen = set()
    for program, *words in commands():
        seen.add(Path(program).name)
        if program == "bash":
            assert (ROOT / words[0]).is_file()
        elif program == "make":
            assert words[0] in targets
        elif Path(program).name == "avloc":
            assert words == ["--help"] or words[0] in known
            assert words[0] != "train" or find_config(words[1])
        else:
            assert Path(program).name in {"pip", "python", "uv", "touch"}
    assert {"bash", "make", "avloc", "uv"} <= seen


def test_extras_that_it_installs_are_declared() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"\.\[(\w+)\]", str(commands())):
        assert re.search(rf"^{extra} = \[", text, re.M)
