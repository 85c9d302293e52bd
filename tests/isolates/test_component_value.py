"""Values across the border in both directions: what comes back is what was given, and nothing of it is left behind."""

import gc
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isolates.component_value import Err, Ok
from isolates.limits import Verdict
from isolates.outcome import Outcome
from tests.isolates.values_guest import CASES, Load, Thing, ValuesSandbox, case_text, plain, served, started


class TestValues:
    @pytest.mark.parametrize("name", [n for n in CASES if n not in ("own", "borrow", "kept")])
    def test_there_and_back(self, name: str, values_box: ValuesSandbox, load: Load) -> None:
        case = CASES[name]
        isolate = started(values_box, load(case_text(name)))
        for value in case.values:
            case.give, case.took = value, None
            finished = served(isolate)
            assert finished.outcome is Outcome.HUNG, (finished, isolate.guest.fault)
            assert plain(case.took) == plain(value)
            assert isolate.guest.resources == 0
        isolate.close()

    def test_any_text_and_any_bytes(self, values_box: ValuesSandbox, load: Load) -> None:
        case = CASES["tuple"]
        isolate = started(values_box, load(case_text("tuple")))

        @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(st.lists(st.tuples(st.text(), st.binary(), st.integers(0, 255)), max_size=20))
        def there_and_back(value: list[tuple[str, bytes, int]]) -> None:
            case.give = value
            assert served(isolate).outcome is Outcome.HUNG
            assert case.took == value

        there_and_back()
        isolate.close()

    def test_any_variant_and_result(self, values_box: ValuesSandbox, load: Load) -> None:
        case, results = CASES["variant"], CASES["option-result"]
        isolate = started(values_box, load(case_text("variant")))
        other = started(values_box, load(case_text("option-result")))
        dot, u32 = st.just(("dot", None)), st.integers(0, 2**32 - 1)
        shapes = dot | st.tuples(st.just("text"), st.text()) | st.tuples(st.just("pair"), st.tuples(u32, st.binary()))
        answers = st.none() | st.builds(Ok, st.none() | u32) | st.builds(Err, st.text())

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(st.lists(shapes, max_size=9), st.lists(answers, max_size=9))
        def there_and_back(some: list[Any], more: list[Any]) -> None:
            case.give, results.give = some, more
            assert served(isolate).outcome is served(other).outcome is Outcome.HUNG
            assert case.took == some
            assert plain(results.took) == plain(more)

        there_and_back()
        isolate.close()
        other.close()

    @pytest.mark.parametrize(
        ("name", "value"), [("u16", ["x"]), ("string", [7]), ("string", ["\ud800"]), ("variant", [("square", None)])]
    )
    def test_a_value_that_cannot_be_lowered_ends_the_guest_only(
        self, name: str, value: Any, values_box: ValuesSandbox, load: Load
    ) -> None:
        CASES[name].give = value
        isolate = started(values_box, load(case_text(name)))
        finished = served(isolate)
        assert (finished.outcome, finished.verdict) == (Outcome.INTERNAL_ERROR, Verdict.KILL)
        isolate.close()


def rss_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * 4096


class TestLeaks:
    @pytest.mark.parametrize(
        ("name", "value", "calls", "bound_mib"),
        [("u8", bytes(65_536), 150, 32), ("string", ["x" * 1_000] * 20, 1_000, 5),
         ("variant", [("pair", (1, b"x" * 99))] * 20, 400, 5), ("own", "things", 2_000, 5)],
    )  # fmt: skip
    def test_calls_do_not_grow_the_process(
        self, name: str, value: Any, calls: int, bound_mib: int, values_box: ValuesSandbox, load: Load
    ) -> None:
        """A leak of what one of these values consists of would be 6 MiB and more (300 for the bytes)."""
        case, isolate = CASES[name], started(values_box, load(case_text(name)))
        things = value == "things"

        def call(times: int) -> None:
            for _ in range(times):
                case.give = [Thing() for _ in range(100)] if things else value
                assert served(isolate).outcome is Outcome.HUNG

        call(math.ceil(calls / 10))
        gc.collect()
        before = rss_bytes()
        call(calls)
        gc.collect()
        assert rss_bytes() - before < bound_mib << 20
        isolate.close()
