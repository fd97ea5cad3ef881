"""The rules of the house that a linter does not know."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("cluster", "engine", "model", "router", "experts", "kernels", "scheduler", "sigmoe", "training")
NOT_KERNELS = {"native"}


def sources(*rooms: str) -> list[Path]:
    return [path for room in rooms for path in sorted((ROOT / room).rglob("*.py")) if "v1" not in path.parts]


def modules_loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("sigmoe", {"torch", "ray", "numpy"}),
        ("sigmoe.cli", {"torch", "ray", "numpy"}),
        ("scheduler.scheduler", {"torch", "ray", "grpc", "numpy", "pydantic"}),
        ("cluster.gateway", {"torch", "ray"}),
        ("engine.build", {"ray", "grpc", "triton"}),
    ],
)
def test_what_a_module_must_not_pull_in(module: str, forbidden: set[str]) -> None:
    assert not modules_loaded_by(module) & forbidden


def test_the_environment_is_read_in_the_config_module_alone() -> None:
    readers = {
        path.relative_to(ROOT).as_posix()
        for path in sources(*ROOMS)
        if re.search(r"os\.environ|os\.getenv|environb", path.read_text())
    }
    assert readers <= {"cluster/config.py"}, f"environment read outside cluster/config.py: {sorted(readers)}"


def test_every_kernel_has_its_four_parts() -> None:
    for folder in sorted(path.parent for path in (ROOT / "kernels").glob("*/__init__.py")):
        if folder.name in NOT_KERNELS:
            continue
        for part in (
            folder / "reference.py",
            ROOT / "tests" / "kernels" / f"test_{folder.name}.py",
            ROOT / "benchmarks" / "kernels" / f"{folder.name}.py",
        ):
            assert part.exists(), f"kernel {folder.name} lacks {part.relative_to(ROOT)}"


def test_proto_is_left_to_proto_plus() -> None:
    assert not list((ROOT / "proto").rglob("*.py"))
    code = "import proto; print(proto.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert str(ROOT / "proto") not in done.stdout


def test_stubs_are_fresh(tmp_path: Path) -> None:
    from grpc_tools import protoc

    names = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto"))
    include = Path(protoc.__file__).parent / "_proto"
    out = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    assert protoc.main(["protoc", f"-I{ROOT / 'proto'}", f"-I{include}", *out, *names]) == 0
    for made in sorted((tmp_path / "sigmoe" / "v1").iterdir()):
        assert made.read_text() == (ROOT / "sigmoe" / "v1" / made.name).read_text(), f"{made.name}: run `make proto`"


def test_every_proto_element_has_a_comment() -> None:
    element = re.compile(r"^\s*(message|enum|service|rpc|oneof|\w[\w<>, .]* \w+ = \d+;)")
    for path in sorted((ROOT / "proto").rglob("*.proto")):
        lines = path.read_text().splitlines()
        bare = [i + 1 for i, line in enumerate(lines) if element.match(line) and "//" not in lines[i - 1]]
        bare = [i for i in bare if not lines[i - 1].startswith(("syntax", "package", "import"))]
        assert not bare, f"{path.name}: no comment above lines {bare}"


def test_all_is_complete_and_sorted() -> None:
    import sigmoe

    public = {name for name in vars(sigmoe) if name[0].isupper()}
    assert list(sigmoe.__all__) == sorted(public)


def test_no_test_package_hides_a_room() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for path in sources(*ROOMS)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not any("triton.jit" in ast.unparse(line) for line in node.decorator_list)  # device kernels are one piece
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= 60
    ]
    assert not long, long


def test_files_hold_one_idea() -> None:
    large = [f"{path.relative_to(ROOT)}" for path in sources(*ROOMS) if len(path.read_text().splitlines()) > 400]
    assert not large, f"over 400 lines, a noun is hiding in each: {large}"


def test_the_repository_names_no_machine_path() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    texts = [
        ROOT / name for name in listed.stdout.split() if Path(name).suffix in {".py", ".md", ".toml", ".yaml", ".c"}
    ]
    forbidden = re.compile("/" + "work/|/" + "root/|/" + "home/")
    found = [
        path.relative_to(ROOT).as_posix() for path in texts if path.exists() and forbidden.search(path.read_text())
    ]
    assert not found, found


def test_environment_is_clean() -> None:
    assert not [name for name in os.environ if name.startswith("SIGMOE_")]
