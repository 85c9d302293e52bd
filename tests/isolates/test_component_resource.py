"""Handles across the border: what a guest owns and borrows, and the table that it is in."""

import pytest

from isolates import abi, component_resource
from isolates.limits import Verdict
from isolates.outcome import Outcome
from tests.isolates.values_guest import CASES, Load, Thing, ValuesSandbox, case_text, served, started


class TestResources:
    def test_an_owned_resource_comes_back_as_itself_and_leaves_the_table(
        self, values_box: ValuesSandbox, load: Load
    ) -> None:
        case, things = CASES["own"], [Thing(), Thing()]
        isolate = started(values_box, load(case_text("own")))
        case.give = things
        assert served(isolate).outcome is Outcome.HUNG
        assert case.took == things
        assert isolate.guest.resources == 0
        assert [t.drops for t in things] == [0, 0], "giving away is not dropping"
        isolate.close()

    def test_a_borrowed_resource_stays_until_it_is_dropped_once(self, values_box: ValuesSandbox, load: Load) -> None:
        case, thing = CASES["borrow"], Thing()
        isolate = started(values_box, load(case_text("borrow")))
        case.give = [thing]
        for drops in (1, 2, 3):
            assert served(isolate).outcome is Outcome.HUNG
            assert case.took == [thing]
            assert thing.drops == drops
            assert isolate.guest.resources == 0
        isolate.close()

    def test_a_library_that_keeps_resources_otherwise_is_asked_in_calls_of_its_own(
        self, values_box: ValuesSandbox, load: Load, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(component_resource, "PAIR_AT", -1)
        isolate = started(values_box, load(case_text("own")))
        case = CASES["own"]
        case.give = [Thing(), Thing()]
        assert served(isolate).outcome is Outcome.HUNG
        assert case.took == case.give
        isolate.close()

    def test_the_table_has_a_cap_and_a_full_table_is_an_ending_not_an_exception(
        self, values_box: ValuesSandbox, load: Load
    ) -> None:
        isolate = started(values_box, load(case_text("kept")), resources_max=12)
        CASES["kept"].give = [Thing() for _ in range(5)]
        assert [served(isolate).outcome for _ in range(2)] == [Outcome.HUNG, Outcome.HUNG]
        finished = served(isolate)  # 10 are kept, 12 with the request; 5 more do not fit
        assert (finished.outcome, finished.verdict) == (Outcome.EXCEPTION, Verdict.KILL)
        assert finished.reason == "more than 12 live resources"
        isolate.close()
        CASES["kept"].give = [Thing() for _ in range(8)]
        full = started(values_box, load(case_text("kept")), resources_max=9)
        assert served(full).outcome is Outcome.HUNG
        finished = served(full)  # 8 are kept: there is not even room for a request and its outparam
        assert (finished.outcome, finished.verdict) == (Outcome.EXCEPTION, Verdict.KILL)
        full.close()

    def test_a_closed_isolate_leaves_no_guest_and_no_thing_behind(self, values_box: ValuesSandbox, load: Load) -> None:
        before = dict(abi.GUESTS)
        isolate = started(values_box, load(case_text("kept")))
        CASES["kept"].give = things = [Thing()]
        served(isolate)
        assert isolate.guest.resources == 1
        isolate.close()
        isolate.close()
        assert before == abi.GUESTS
        assert things[0].drops == 0, "a store that is deleted runs no destructor"
