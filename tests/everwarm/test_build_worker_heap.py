"""A Python worker whose objects are immortal: it computes what it would anywhere, and nothing of it is counted."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from everwarm.build.toolchain import PYTHON
from isolates.immortal import PATH
from isolates.limits import MIB, Verdict
from isolates.outcome import Outcome
from tests.built_worker import BuiltWorker, needs

#: It does to its objects what programs do: makes some, drops some that were there from the beginning, and some that
#: refer to each other; changes what stays; fails; and has all of it collected in between.
WORKER = """
import collections, functools, gc, hashlib, io, itertools, json, re, sys, weakref

class Node:
    shared = {"made": 0}

    def __init__(self, value, next=None):
        self.value, self.next, self.names = value, next, [f"n{value}"]
        Node.shared["made"] += 1

    def __del__(self):
        DROPPED.append(self.value)

DROPPED = []
KEPT = functools.reduce(lambda rest, value: Node(value, rest), range(100), None)
TABLE = {f"key {number}": (number, str(number) * 3, [number]) for number in range(500)}
DOOMED = {f"key {number}": {"self": None, "number": number} for number in range(300)}
for _one in DOOMED.values():
    _one["self"] = _one
TEXT, NUMBER, BYTES, FROZEN = "a text of its own", 10**40, bytes(range(256)), frozenset({("a", 1)})

def suspended():
    total = 0
    while True:
        total += yield total

RUNNING = suspended()
next(RUNNING)

@functools.lru_cache(maxsize=16)
def cached(number):
    return [number] * 3

for _number in range(20):
    cached(_number)
BUFFER = io.BytesIO()
BUFFER.write(b"from the beginning")
# These reuse what they gave before, once they alone have it; a queue and an order lose what was there at first.
PAIRS, GROUPS = zip(range(10**6), range(10**6)), itertools.groupby(range(10**6), lambda number: number // 3)
EARLIER = [next(PAIRS), next(PAIRS)]
QUEUE = collections.deque(([number] for number in range(50)), maxlen=50)
ORDER = collections.OrderedDict((number, [number]) for number in range(50))
WEAK = weakref.WeakSet()

class Failure(Exception):
    pass

def fails(depth):
    if depth:
        return fails(depth - 1)
    raise Failure(TEXT, NUMBER)

def work(number):
    global TEXT, NUMBER, BYTES, FROZEN
    ring = [Node(1_000 + number)]
    ring[0].next = ring
    WEAK.add(ring[0])
    gone = weakref.ref(ring[0])
    del ring
    DOOMED.pop(f"key {number}", None)
    globals()[f"new_{number % 7}"] = {"of": number, "and": KEPT.value}
    globals().pop(f"new_{(number + 3) % 7}", None)
    TEXT, NUMBER, BYTES = TEXT[1:] + TEXT[:1], NUMBER * 3 % 10**40, BYTES[7:] + BYTES[:7]
    FROZEN = FROZEN ^ {(str(number % 5), number % 5)}
    number_, text, list_ = TABLE.pop(f"key {number % 500}", (0, "", []))
    TABLE[f"key {(number + 250) % 500}"] = (number_ + 1, text[::-1], [*list_, number])
    KEPT.names.append(KEPT.names[-1] + "x")
    if len(KEPT.names) > 5:
        del KEPT.names[1:]
    BUFFER.seek(number % 9)
    BUFFER.write(b"%d" % number)
    EARLIER.append(next(PAIRS))
    del EARLIER[0]
    QUEUE.append([number])
    ORDER[number % 70] = [number]
    ORDER.move_to_end(number % 70)
    if len(ORDER) > 50:
        ORDER.popitem(last=False)
    try:
        fails(number % 20)
    except Failure as failure:
        failed = repr(failure.args)
    if number % 10 == 0:
        gc.collect()
    if number % 50 == 0:
        gc.unfreeze()
        for generation in range(3):
            gc.collect(generation)
    if number % 25 == 0:
        gc.collect()
        assert gone() is None and not WEAK, "what is new is collected as ever"
    again = re.sub("([0-9]+)", lambda found: str(int(found[1]) + 1), json.dumps(sorted(TABLE.items())))
    state = [
        failed, again, sorted(DOOMED), len(BYTES), TEXT, NUMBER, sorted(FROZEN), KEPT.names, cached(number % 30),
        BUFFER.getvalue(), EARLIER, list(QUEUE), list(ORDER.items()), next(GROUPS)[0],
        RUNNING.send(number), Node.shared["made"], [name for name in sorted(globals()) if name.startswith("new_")],
    ]
    return {"state": hashlib.sha256(repr((state, BYTES)).encode()).hexdigest(), "length": len(again)}

def counts():
    gc.unfreeze()
    all_ = gc.get_objects()
    none = sys.getrefcount(None)
    mine = {
        "function": work, "class": Node, "object": KEPT, "its list": KEPT.names, "table": TABLE, "text": TEXT,
        "number": NUMBER, "bytes": BYTES, "in a table": TABLE["key 3"], "code": work.__code__, "module": json,
        "generator": RUNNING, "iterator": PAIRS, "buffer": BUFFER, "built-in type's method": dict.get,
        "cache": cached, "globals": fails.__globals__,
    }
    return {
        "counted": [name for name, thing in mine.items() if sys.getrefcount(thing) != none],
        "immortal": sum(sys.getrefcount(thing) == none for thing in all_) / len(all_),
        "new": sys.getrefcount([]) < 10, "none": none,
    }

def app(environ, start_response):
    path = environ["PATH_INFO"].strip("/")
    if path == "fail":
        fails(5)
    answer = counts() if path == "counts" else work(int(path))
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
"""
REQUESTS = 400


def of_plain_python(number: int, serve: Callable[..., Any]) -> Any:
    return json.loads(b"".join(serve({"PATH_INFO": f"/{number}"}, lambda status, headers: None)))


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuiltWorker]:
    folder = tmp_path_factory.mktemp("immortal")
    (folder / "app.py").write_text(WORKER)
    (folder / "everwarm.toml").write_text('name = "immortal"\nlanguage = "python"\nentry = "app.py"\n')
    worker = BuiltWorker.of(folder)
    yield worker
    worker.close()


@pytest.mark.toolchain
@needs(PYTHON)
class TestImmortal:
    def test_from_its_first_request_on_nothing_of_the_worker_is_counted(self, worker: BuiltWorker) -> None:
        counts = json.loads(worker.ask("/counts").body)
        assert counts["none"] > 1 << 20
        assert counts["counted"] == []
        assert counts["immortal"] > 0.9
        assert counts["new"], "what a request makes goes with it"

    def test_it_computes_what_plain_python_does(self, worker: BuiltWorker) -> None:
        plain: dict[str, Any] = {}
        exec(compile(WORKER, "app.py", "exec"), plain)
        memory_bytes = []
        for number in range(REQUESTS):
            memory_bytes.append(worker.isolate.linear_bytes)
            answer = worker.ask(f"/{number}")
            assert json.loads(answer.body) == of_plain_python(number, plain["app"]), number
            assert answer.finished.verdict is Verdict.KEEP
            if number % 40 == 7:
                failed = worker.ask("/fail")
                assert failed.finished.outcome is Outcome.EXCEPTION
                assert "Failure: ('" in failed.log
        assert memory_bytes[-1] - memory_bytes[REQUESTS // 2] <= 2 * MIB, "what is new is freed as ever"

    def test_nobody_else_is_shown_the_list(self, worker: BuiltWorker) -> None:
        assert worker.ask(PATH).finished.outcome is Outcome.EXCEPTION, "the worker's own code is asked, and has no such"
