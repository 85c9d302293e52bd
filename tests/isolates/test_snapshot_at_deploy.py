"""Whether a start-up that takes its time is done once, as a deploy decides it."""

import secrets
from pathlib import Path

import pytest

from isolates.artifact import ArtifactStore, Compiled
from isolates.compiler import compile_and_start
from isolates.component_value import integer
from isolates.engine import Sandbox
from isolates.isolate import Isolate
from isolates.outcome import Outcome
from tests.isolates.conftest import ROOT
from tests.isolates.snapshot_guest import DIGEST, LIMITS, LONG, STARTS, component
from tests.scripted_conversation import ScriptedConversation


class TestAtDeploy:
    """Whether a start-up that takes its time is taken, as a deploy decides it."""

    def compiled(self, folder: Path, encoded: bytes) -> tuple[ArtifactStore, Compiled]:
        store = ArtifactStore(folder)
        made = compile_and_start(encoded, store, LIMITS)
        assert isinstance(made, Compiled), made
        return store, made

    def start_is_taken(self, folder: Path, items: str, **more: str) -> bool:
        return self.compiled(folder, component(items, **more))[1].snapshot_saves_ms > 0

    def test_one_that_asks_nobody_is(self, tmp_path: Path) -> None:
        assert self.start_is_taken(tmp_path, f"(memory 1) (func $start {LONG}) (start $start)")

    def test_one_that_takes_no_time_is_not(self, tmp_path: Path) -> None:
        assert not self.start_is_taken(tmp_path, f"(memory 1) {STARTS}")

    @pytest.mark.parametrize(
        ("interface", "function", "kind", "core", "call"),
        [("wasi:random/random", "get-random-u64", "(result u64)", "(result i64)", "(drop (call $ask))"),
         ("wasi:clocks/monotonic-clock", "now", "(result u64)", "(result i64)", "(drop (call $ask))"),
         ("wasi:random/random", "get-random-u64", "(result u64)", "(result i64)",
          "(if (i32.eqz (i32.load (i32.const 0))) (then (drop (call $ask))))")],
    )  # fmt: skip
    def test_one_that_asks_the_host_is_not(
        self, interface: str, function: str, kind: str, core: str, call: str, tmp_path: Path
    ) -> None:
        more = {
            "before": f"""(import "{interface}@0.2.0" (instance $host (export "{function}" (func {kind}))))
                (core func $ask (canon lower (func $host "{function}")))""",
            "imports": f'(import "host" "ask" (func $ask {core}))',
            "arguments": '(with "host" (instance (export "ask" (func $ask))))',
        }
        assert not self.start_is_taken(tmp_path, f"(memory 1) (func $start {LONG} {call}) (start $start)", **more)
        # That it could have asked is no reason.
        unasked = f"(memory 1) (func $start {LONG} (if (i32.const 0) (then {call}))) (start $start)"
        assert self.start_is_taken(tmp_path, unasked, **more)

    def test_one_that_takes_a_handle_is_not(self, tmp_path: Path) -> None:
        more = {
            "before": """(import "wasi:io/streams@0.2.0" (instance $io (export "output-stream" (type (sub resource)))))
                (alias export $io "output-stream" (type $stream))
                (import "wasi:cli/stdout@0.2.0" (instance $host (alias outer 1 $stream (type $outer))
                  (export "output-stream" (type $stream (eq $outer)))
                  (export "get-stdout" (func (result (own $stream))))))
                (core func $ask (canon lower (func $host "get-stdout")))""",
            "imports": '(import "host" "ask" (func $ask (result i32)))',
            "arguments": '(with "host" (instance (export "ask" (func $ask))))',
        }
        items = f"(memory 1) (func $start {LONG} (drop (call $ask))) (start $start)"
        assert not self.start_is_taken(tmp_path, items, **more)

    def test_one_whose_state_can_not_be_read_runs_as_it_came(self, box: Sandbox, tmp_path: Path) -> None:
        items = f"""(memory 1) (table 1 funcref) (func $unused (table.set 0 (i32.const 0) (ref.null func)))
            (func $start {LONG} (i32.store (i32.const 8) (i32.const 3))) (start $start)"""
        exports = DIGEST + '(func (export "seen") (result i64) (i64.load32_u (i32.const 8)))'
        store, made = self.compiled(tmp_path, component(items, exports))
        assert made.snapshot_saves_ms == 0
        isolate = Isolate.start(box, store.map(box, made.component_digest), LIMITS, secrets.token_bytes)
        assert isinstance(isolate, Isolate)
        assert isolate.ask("seen", [], integer("u64")) == 3
        isolate.close()

    def test_a_start_that_fails_fails_as_before(self, tmp_path: Path) -> None:
        rejected = compile_and_start(
            component(f"(memory 1) (func $start {LONG} unreachable) (start $start)"), ArtifactStore(tmp_path), LIMITS
        )
        assert not isinstance(rejected, Compiled)
        assert "does not start: wasm trap" in str(rejected)

    def test_the_example_starts_at_once_and_the_other_one_does_not(self, box: Sandbox, tmp_path: Path) -> None:
        cpu_ms, saves_ms = {}, {}
        for name in ("snapshot", "slow_start"):
            worker = ROOT / "workers" / "zig" / name / "worker.wasm"
            store, made = self.compiled(tmp_path / name, worker.read_bytes())
            saves_ms[name] = made.snapshot_saves_ms
            mapped, times = store.map(box, made.component_digest), []
            for _ in range(3):
                isolate = Isolate.start(box, mapped, LIMITS, secrets.token_bytes)
                assert isinstance(isolate, Isolate)
                conversation = ScriptedConversation("/x")
                assert isolate.run(conversation).outcome is Outcome.OK
                assert conversation.body == b"hello from Zig\nyou asked for /x\n"
                times.append(isolate.start_cpu_ms)
                isolate.close()
            cpu_ms[name] = min(times)
        assert saves_ms["slow_start"] == 0
        assert saves_ms["snapshot"] > cpu_ms["slow_start"] / 4
        assert cpu_ms["snapshot"] < cpu_ms["slow_start"] / 10
