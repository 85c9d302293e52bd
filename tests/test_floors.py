"""Who may import whom: the plan of the house, read from the sources."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FLOORS = ["everwarm", "ingress", "actors", "isolates", "tracing"]  # left may import right, never back
BORDERS = {
    "wasmtime": {f"isolates/{p.name}" for p in (REPOSITORY / "isolates").glob("*.py")}
    | {f"isolates/wasi/{p.name}" for p in (REPOSITORY / "isolates" / "wasi").glob("*.py")},
    "ray": {"actors/peer.py", *(f"everwarm/{n}.py" for n in "cluster ray_driver standbys doctor/asking".split())},
    "uhashring": {"actors/ring.py"},
    "opentelemetry": {"tracing/export.py", "tracing/export_metrics.py"},
    # The edge's certificates, and the way out that checks those of origins: two ends that share nothing.
    "ssl": {"ingress/tls.py", "actors/egress_connect.py"},
    "httpcore": {f"actors/egress_{n}.py" for n in "connect http origin".split()},
    "h11": {"actors/egress_http.py"},
    "h2": {"actors/egress_http.py"},
    "hpack": {"actors/egress_http.py"},
}
PURE = {
    *(f"actors.{n}" for n in "dispatch admission routing capability exchange worker egress_policy".split()),
    *(f"actors.{n}" for n in "residency resident decision score_heap host_choice".split()),
    *(f"actors.{n}" for n in "eviction lines past_starts room spares host_gauge stage_calls".split()),
    *(f"actors.{n}" for n in "heat load_board next_use membership host_loads warmth prewarm".split()),
    *(f"actors.{n}" for n in "budget ledger context flow stage_report tail_events".split()),
    *(f"actors.{n}" for n in "bindings plain worker_names cordons live_headers".split()),
    *(f"actors.{n}" for n in "supervision crash_blame line_pulse".split()),
    *(f"everwarm.build.{n}" for n in "manifest_keys shape toml_places".split()),
    "everwarm.nodes",
    *(f"everwarm.doctor.{n}" for n in "facts findings".split()),
    "ingress.routes",
    *(f"isolates.{n}" for n in "limits outcome conversation egress immortal stores cpu".split()),
    *(f"actors.{n}" for n in "host_counts machine_metrics live_tail wire".split()),
    *(f"tracing.{n}" for n in "metrics otlp_url".split()),
    *(f"tracing.{n}" for n in "trace sampling token_bucket summary redaction waterfall".split()),
}
#: The values that travel: a library's records, which are made and copied several times for each request.
PURE_LIBRARIES = {"msgspec"}
#: What a pure file never does: look at a clock, roll dice, talk to the world.
IMPURE = set("time random secrets os io pathlib socket select ssl threading asyncio subprocess multiprocessing".split())
FILES = sorted(str(path.relative_to(REPOSITORY)) for floor in FLOORS for path in (REPOSITORY / floor).rglob("*.py"))


@cache
def imports(file: str) -> set[str]:
    """The modules a file imports anywhere in it, with what it takes from a package that is one of our floors."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((REPOSITORY / file).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            module = node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names} if module in FLOORS else {module}
    return found


@pytest.mark.parametrize("file", FILES)
def test_nobody_imports_back(file: str) -> None:
    floor = FLOORS.index(file.split("/")[0])
    above = {module for module in imports(file) if module.split(".")[0] in FLOORS[:floor]}
    assert not above


@pytest.mark.parametrize("library", BORDERS)
def test_each_library_has_its_border(library: str) -> None:
    users = {file for file in FILES if library in {module.split(".")[0] for module in imports(file)}}
    assert users, f"nobody imports {library}; the border is gone"
    assert users <= BORDERS[library]


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_files_are_pure(module: str) -> None:
    for imported in imports(module.replace(".", "/") + ".py"):
        top = imported.split(".")[0]
        stdlib = top in sys.stdlib_module_names and top not in IMPURE
        assert stdlib or imported in PURE or top in PURE_LIBRARIES, imported
