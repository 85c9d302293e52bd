"""What code is compiled for: levels as pure decisions, and what the real wasmtime makes of code for another CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from wasmtime import Config, Engine, Module, WasmtimeError, wat2wasm

from isolates.cpu import LEVEL_DEFAULT, SETTING, Target, target_of
from isolates.engine import Sandbox, engine_text, fingerprint, target

OLD = {"fpu", "sse", "sse2", "cx16", "popcnt", "pni"}
COMMON = OLD | {"ssse3", "sse4_1", "sse4_2"}
NEW = COMMON | {"avx", "avx2", "bmi1", "bmi2", "fma", "abm", "avx512f", "amx_tile"}
#: Something that is compiled in another way where AVX is.
SOURCE = wat2wasm(
    '(module (func (export "f") (param v128 v128) (result v128) (f32x4.add (local.get 0) (local.get 1))))'
)


class TestTarget:
    def test_machines_of_different_years_have_the_same(self) -> None:
        assert target_of("x86_64", COMMON) == target_of("x86_64", NEW)
        assert target_of("x86_64", NEW).name == LEVEL_DEFAULT == "x86-64-v2"

    def test_one_that_lacks_something_has_another_that_says_so(self) -> None:
        old = target_of("x86_64", OLD)
        assert old.name == "x86-64-v2 without ssse3, sse4_1, sse4_2"
        assert set(old.flags) < set(target_of("x86_64", COMMON).flags)

    def test_an_operator_may_set_the_level_and_then_old_and_new_have_the_same(self) -> None:
        assert target_of("x86_64", OLD, level="x86-64") == target_of("x86_64", NEW, level="x86-64")
        assert target_of("x86_64", NEW, level="x86-64").flags == ()
        assert "has_avx2" in target_of("x86_64", NEW, level="x86-64-v3").flags
        assert target_of("x86_64", COMMON, level="x86-64-v3").name.startswith("x86-64-v3 without avx, avx2")

    def test_another_level_is_none(self) -> None:
        with pytest.raises(ValueError, match="EVERWARM_CPU is 'pentium'; there are x86-64, x86-64-v2, x86-64-v3"):
            target_of("x86_64", NEW, level="pentium")

    def test_other_architectures(self) -> None:
        assert target_of("aarch64", {"asimd", "atomics"}) == Target("aarch64", "aarch64-unknown-linux-gnu")
        assert target_of("aarch64", set(), musl=True).triple == "aarch64-unknown-linux-musl"
        # Of these, wasmtime looks at the machine itself.
        assert target_of("s390x", {"vx", "esan3"}) == Target("s390x esan3 vx")


def engine(*flags: str, triple: str = "") -> Engine:
    config = Config()
    config.target = triple or target().triple
    for flag in flags:
        config.cranelift_flag_enable(flag)
    return Engine(config)


def compiled(*flags: str) -> bytes:
    return bytes(Module(engine(*flags), SOURCE).serialize())


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="it is about levels of x86-64")
class TestWasmtime:
    def test_what_the_sandbox_compiles_runs_on_less_than_this_machine(self, box: Sandbox) -> None:
        artifact = bytes(Module(box.engine, SOURCE).serialize())
        # An artifact names the instructions that it may use, each with a byte: here, that it does not.
        assert b"has_sse41\x02\x01" in artifact
        for beyond in (b"has_avx", b"has_avx2", b"has_bmi2", b"has_avx512f"):
            assert beyond + b"\x02\x00" in artifact
        assert engine_text().endswith(f"for x86-64-v2 (settings {engine_text()[-9:-1]})")

    def test_code_for_less_is_loaded(self, box: Sandbox) -> None:
        Module.deserialize(box.engine, bytes(Module(box.engine, SOURCE).serialize()))
        less = engine(triple=target().triple)
        Module.deserialize(less, compiled())

    def test_code_for_a_cpu_that_this_is_not_is_refused(self) -> None:
        if "apx_f" in Path("/proc/cpuinfo").read_text().split():
            pytest.skip("this CPU has everything that wasmtime knows")
        with pytest.raises(WasmtimeError, match="not compatible with the native host"):
            Module.deserialize(engine("has_apx"), compiled("has_apx"))

    def test_a_process_that_is_told_another_level_keeps_its_code_apart(self, tmp_path: Path) -> None:
        worker = Path(__file__).parents[2] / "workers" / "zig" / "hello" / "worker.wasm"
        said = subprocess.run(
            [sys.executable, "-m", "isolates.compiler", str(worker), str(tmp_path), "5000", str(1 << 27), str(1 << 27)],
            env={**os.environ, SETTING: "x86-64"},
            capture_output=True,
            check=True,
        )
        assert b'"compiled"' in said.stdout.splitlines()[-1]
        (folder,) = tmp_path.iterdir()
        assert folder.name != fingerprint()
        for piece in folder.glob("*.cwasm"):
            assert b"has_sse41\x02\x00" in piece.read_bytes()
