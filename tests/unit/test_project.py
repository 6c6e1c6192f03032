"""Test the project: generated pages, imports, start-up time, and documentation."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import finetale
from finetale.cli import COMMANDS

ROOT = Path(__file__).parents[2]
HEAVY = ["torch", "transformers", "accelerate", "datasets", "pandas", "pyarrow", "matplotlib", "numpy"]


def test_the_reference_pages_are_up_to_date() -> None:
    generate = runpy.run_path(str(ROOT / "docs/generate.py"))
    assert (ROOT / "docs/commands.md").read_text(encoding="utf-8") == generate["commands"](), "run `make docs`"
    assert (ROOT / "docs/schema.md").read_text(encoding="utf-8") == generate["schema"](), "run `make docs`"
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == generate["settings"](), "run `make docs`"
    assert (ROOT / "README.md").read_text(encoding="utf-8") == generate["readme"](), "run `make docs`"


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\nLOADED', *sorted(m for m in sys.modules if '.' not in m))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    return set(out.split("LOADED", 1)[1].split())


def test_importing_and_help_load_nothing_heavy() -> None:
    assert loaded_by("import finetale").isdisjoint(HEAVY)
    assert loaded_by("from finetale.cli import run; run(['--help'])").isdisjoint(HEAVY)
    assert loaded_by("from finetale.cli import run; run(['train', '--help'])").isdisjoint(HEAVY)


def test_a_check_that_counts_no_tokens_loads_nothing_heavy() -> None:
    code = "from finetale.cli import run; run(['check', 'bundled:tales', '--json', '--quiet', '--offline'])"
    assert loaded_by(code).isdisjoint({*HEAVY} - {"numpy"})


@pytest.mark.parametrize("words", [["-c", "import finetale"], ["-m", "finetale", "--help"]])
def test_start_up_takes_under_a_third_of_a_second(words: list[str]) -> None:
    """The CPU time of the fastest of 5 starts does not depend on the load of the machine."""
    import resource

    spent = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.3


def test_every_command_has_help_and_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(COMMANDS) == 16
    for name in COMMANDS:
        assert (ROOT / f"src/finetale/cli/{name}.py").is_file()
        assert f"finetale {name}" in readme


def test_public_names_are_listed() -> None:
    assert len(finetale.__all__) == 12
    for name in finetale.__all__:
        assert getattr(finetale, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        finetale.nonsense  # noqa: B018
    assert callable(finetale.train)
    assert callable(finetale.compare)


def test_names_stay_functions_after_everything_is_imported() -> None:
    """A submodule called like a public function would replace it on the package."""
    code = (
        "import finetale as ft, finetale.pipeline, finetale.library\n"
        "assert all(callable(getattr(ft, n)) for n in ft.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_links_in_the_pages_are_valid() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    links = [
        (page, target) for page in pages for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) >= 5
    assert [(page.name, target) for page, target in links if not (page.parent / target).exists()] == []


def test_the_tree_in_the_readme_matches_the_files() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme.split("```text\nsrc/finetale/", 1)[1].split("```", 1)[0]
    named = {
        line.split()[0].rstrip("/")
        for line in tree.splitlines()
        if line.startswith("  ") and not line.startswith("   ")
    }
    real = {
        p.name
        for p in (ROOT / "src/finetale").iterdir()
        if p.name not in ("__pycache__", "__init__.py", "__main__.py", "py.typed")
    }
    assert named == real


def test_the_layer_numbers_in_the_readme_match_the_contract() -> None:
    """The number is the row of the contract, counted from the lowest."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    rows = [[module.strip() for module in row.split("|")] for row in reversed(contracts[0]["layers"])]
    numbers = {module.removeprefix("finetale."): number for number, row in enumerate(rows) for module in row}
    numbers.pop("__main__")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme.split("```text\nsrc/finetale/\n", 1)[1].split("\nrecipes/", 1)[0]
    lines = [re.match(r"  (\S+?)(?:\.py|/)? +(\d+)?  \S", line) for line in tree.splitlines()]
    assert len(lines) >= 25
    assert all(lines)
    shown = {line[1]: int(line[2]) for line in lines if line is not None and line[2]}
    assert shown == numbers
    assert list(shown.values()) == sorted(shown.values())
    without = {line[1] for line in lines if line is not None and not line[2]}
    assert without == {"bundled", "templates"}, "these folders have no code"


def test_the_floor_is_the_lowest_version_of_each_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    in_floor = ("answers", "datasets", "export-gguf", "export-onnx", "formats", "gguf", "sentencepiece", "tensorboard")
    ranges = {*project["dependencies"], *(each for name in in_floor for each in extras[name])}
    pairs = [re.match(r"([\w-]+)>=([\d.]+)", each) for each in ranges]
    lowest = {pair[1]: pair[2] for pair in pairs if pair is not None}
    lines = (ROOT / "constraints-floor.txt").read_text(encoding="utf-8").splitlines()
    floor = dict(line.lower().replace("_", "-").split("==") for line in lines if "==" in line)
    assert len(floor) == len(ranges) >= 20
    assert set(floor) == set(lowest)
    for name, version in floor.items():
        shorter = lowest[name].split(".")
        assert version.split(".")[: len(shorter)] == shorter, name
