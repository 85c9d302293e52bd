"""Faults of the host, which must not cross the border."""

import asyncio
import threading

import pytest

from isolates.artifact import Mapped
from isolates.limits import Verdict
from isolates.outcome import Outcome
from tests.isolates.guest_text import DROP_BOTH, handler
from tests.isolates.values_guest import Load, ValuesSandbox, served, started

FAULTS_IMPORT = """(import "test:abi/faults@0.2.0" (instance $faults
    (export "grenade" (type $grenade (sub resource)))
    (export "fail" (func (result u32)))
    (export "arm" (func (result (own $grenade))))))"""
FAULTS_LOWERED = """(core func $fail (canon lower (func $faults "fail")))
    (core func $arm (canon lower (func $faults "arm")))
    (alias export $faults "grenade" (type $dropped)) (core func $drop (canon resource.drop $dropped))"""
FAULTS_FUNCTIONS = "fail (result i32)\narm (result i32)\ndrop (param i32)"
FAULT_TYPES = [Exception, KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit, MemoryError]


class TestArmour:
    def faulty(self, load: Load, body: str) -> Mapped:
        parts = {"imports": FAULTS_IMPORT, "lowered": FAULTS_LOWERED, "functions": FAULTS_FUNCTIONS}
        return load(handler(**parts, body=f"{DROP_BOTH} {body}"))

    @pytest.mark.parametrize("kind", FAULT_TYPES)
    @pytest.mark.parametrize("body", ["(drop (call $fail))", "(call $drop (call $arm))"])
    def test_a_fault_of_the_host_ends_the_guest_only(
        self, kind: type[BaseException], body: str, values_box: ValuesSandbox, load: Load
    ) -> None:
        isolate = started(values_box, self.faulty(load, body))
        fault = values_box.faults.by_guest[isolate.guest] = kind("at /home/somebody/secret.py")
        finished = served(isolate)
        assert isolate.guest.fault is fault
        assert (finished.outcome, finished.verdict) == (Outcome.INTERNAL_ERROR, Verdict.KILL)
        assert finished.reason == f"the host failed ({kind.__name__})", "nothing of the host's is shown"
        isolate.close()

    def test_two_threads_keep_their_faults_apart(self, values_box: ValuesSandbox, load: Load) -> None:
        mapped, wrong = self.faulty(load, "(drop (call $fail))"), []
        together = threading.Barrier(2)

        def fail(kind: type[BaseException]) -> None:
            together.wait()
            for number in range(200):
                isolate = started(values_box, mapped)
                fault = values_box.faults.by_guest[isolate.guest] = kind(number)
                finished = served(isolate)
                if isolate.guest.fault is not fault or finished.reason != f"the host failed ({kind.__name__})":
                    wrong.append((kind, number, isolate.guest.fault, finished))
                del values_box.faults.by_guest[isolate.guest]
                isolate.close()

        threads = [threading.Thread(target=fail, args=(kind,)) for kind in (KeyError, SystemExit)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
