"""Components made by dice: guests that call everything a worker may import, politely or not.

A seed decides on a program for each of a few requests, and perhaps for start-up. A program is a list of calls with made
up arguments. What the host returns as handles goes into *slots* in the guest's memory, some for each resource, and
later calls take their handles from there; a call whose slots are empty is left out, or the first mistake would be the
end of every program. A *hostile* program makes mistakes on purpose: handles of another type, dropped, or of nothing,
lists that leave the memory, results at odd places. Types of imports may be declared wrong, and the allocator may be a
bad one. A *tidy* program drops all it has at the end of each request.
"""

import random
from dataclasses import dataclass, field

from tests.isolates.fuzz_text import ALLOCATORS, FLAT_MAX, HEAP_AT, Parts, component_text
from tests.isolates.fuzz_world import (
    SCALARS,
    Function,
    Kind,
    RecordedWorld,
    align,
    cases_of,
    flat,
    handles,
    payload_at,
    places,
    rounded,
    size,
)

#: Where things are in the guest's memory. The heap begins with the second page.
SLOTS_AT, TEXTS_AT, TEXTS_END, ARGUMENTS_AT, RESULT_AT = 0x400, 0x2000, 0x8000, 0x8000, 0xE000
SLOTS_EACH = 4
TEXTS = (
    "", "a", "content-length", "content-type", "x-thing", "X-Thing", "host", "connection", "transfer-encoding", "1",
    "0", "5", "12", "99999999999999999999", "text/plain", "bad name", "bad\r\nvalue", "GET", "PURGE", "HTTP", "ws",
    "origin.test", "origin.test:8080", "user@origin.test", "[::1]:80", "/", "/path?query", "?q", "/a b", "Grüße",
    "日本", "🌍", "é" * 200, "x" * 2_000, "cookie", "\0",
)  # fmt: skip
_WRONG_TYPES = (
    "u8",
    "u64",
    "string",
    "list<u8>",
    "list<string>",
    "option<string>",
    "tuple<u32, u32>",
    "bool",
    "result",
)
_NUMBERS = (0, 1, 2, 3, 7, 63, 64, 65, 100, 200, 204, 304, 404, 4_096, 4_097, 65_535, 65_536, 65_537, 1_000_000)
_HUGE = (
    1 << 20,
    1 << 24,
    1 << 31,
    (1 << 31) - 1,
    (1 << 32) - 1,
    (1 << 32) - 2,
    (1 << 32) - 65_536,
    1 << 63,
    (1 << 64) - 1,
)


@dataclass
class Call:
    """The core instructions of one call while it is put together."""

    setup: list[str] = field(default_factory=list)
    guards: list[str] = field(default_factory=list)
    consumed: list[int] = field(default_factory=list)
    arguments_at: int = ARGUMENTS_AT


#: How often things are called whose calls end a program or add little, beside 10 for the others.
_WEIGHTS = {"wasi:cli/exit": 1, "wasi:sockets": 1, "wasi:filesystem": 1, "wasi:cli": 3, "wasi:random": 4}


#: What guests do, in the order in which it comes to something.
_ERRANDS = (
    (
        "[constructor]fields", "[method]fields.append", "[constructor]outgoing-response",
        "[method]outgoing-response.body", "[method]outgoing-body.write", "[method]output-stream.write",
        "[static]response-outparam.set", "[method]output-stream.subscribe",
        "[method]output-stream.blocking-write-and-flush", "[method]output-stream.blocking-splice",
        "[static]outgoing-body.finish",
    ),
    (
        "[method]incoming-request.consume", "[method]incoming-body.stream", "[method]input-stream.subscribe",
        "[method]input-stream.read", "[method]pollable.block", "[method]input-stream.blocking-read",
        "[method]input-stream.blocking-skip", "[static]incoming-body.finish", "[method]future-trailers.subscribe",
        "[method]future-trailers.get",
    ),
    (
        "[constructor]fields", "[constructor]outgoing-request", "[method]outgoing-request.set-authority",
        "[method]outgoing-request.set-method", "[method]outgoing-request.body", "[method]outgoing-body.write",
        "[method]output-stream.blocking-write-and-flush", "[constructor]request-options", "handle",
        "[method]future-incoming-response.subscribe", "[method]output-stream.check-write", "poll",
        "[method]output-stream.write", "[method]pollable.block", "[method]future-incoming-response.get",
        "[method]incoming-response.consume", "[static]outgoing-body.finish", "[method]incoming-body.stream",
        "[method]input-stream.subscribe", "[method]input-stream.blocking-read", "[method]input-stream.blocking-read",
        "http-error-code", "[static]incoming-body.finish",
    ),
)  # fmt: skip

#: What errands say where most texts would be refused.
_HINTS = {
    "[method]fields.append": "x-thing",
    "[method]outgoing-request.set-authority": "origin.test",
    "[method]outgoing-request.set-method": "PURGE",
}


class Program:
    """The component of one seed. ``polite``: it makes no mistakes on purpose; ``tidy``: it leaves nothing behind."""

    def __init__(self, world: RecordedWorld, seed: int) -> None:
        self._world = world
        self._dice = dice = random.Random(seed)
        self.polite = dice.random() < 0.5
        self.tidy = dice.random() < 0.6
        self.requests = dice.randint(1, 3)
        self.encoding = dice.choice(["utf8", "utf8", "utf16", "latin1+utf16"])
        self.allocator = (
            "good"
            if (self.polite and self.tidy) or dice.random() < 0.6
            else dice.choice(sorted(ALLOCATORS.keys() - {"good"}))
        )
        self._hostility = 0.0 if self.polite else dice.choice([0.003, 0.01, 0.05])
        self.wrong_types = not self.polite and dice.random() < 0.3
        self.resources = sorted(world.origins)
        #: Whether it imports what prepared components import. Then it can not be prepared itself.
        self.forges = not self.polite and dice.random() < 0.2
        self._functions = [f for f in world.functions if self.forges or "everwarm-" not in f.name]
        self._by_name = {function.name: function for function in world.functions}
        self._filled: set[int] = set()
        #: Set while a call of an errand is made: the text it had better use, if any.
        self._hint: str | None = None
        self._weights = {function: self._weight(function) for function in world.functions}
        self._used: dict[Function, tuple[str, Function]] = {}
        self._live: set[str] = set()
        self._texts: dict[str, tuple[int, int]] = {}
        self._texts_end = TEXTS_AT
        self.text = self._component()

    @property
    def well_known(self) -> bool:
        """Whether its imports are what they should be: then it can be prepared."""
        return not (self.forges or self.wrong_types)

    # ---------------------------------------------------------------------------------------------------- values

    def _slots(self, resource: str) -> list[int]:
        first = SLOTS_AT + 4 * SLOTS_EACH * self.resources.index(resource)
        return [first + 4 * i for i in range(SLOTS_EACH)]

    def _slot(self, resource: str) -> int:
        """One of its slots, of those that should have something if there are any."""
        slots = self._slots(resource)
        return self._dice.choice([slot for slot in slots if slot in self._filled] or slots)

    def _mistake(self) -> bool:
        return self._dice.random() < self._hostility

    def _handle(self, kind: Kind, call: Call) -> str:
        resource = self._world.resource_of(kind.name)
        slot = self._slot(resource)
        if self._mistake():
            how = self._dice.randrange(4)
            if how == 0:
                return f"(i32.const {self._dice.choice([0, 1, 2, 3, 9, 40, 1 << 20, (1 << 28) - 1, 1 << 28, -1])})"
            if how == 1:
                return f"(i32.load (i32.const {self._slot(self._dice.choice(self.resources))}))"
            # Empty, or used again after it was given away.
            return f"(i32.load (i32.const {slot}))"
        if slot in call.consumed:
            call.guards.append("(i32.const 0)")
        call.guards.append(f"(i32.load (i32.const {slot}))")
        if kind.head == "own":
            call.consumed.append(slot)
            self._filled.discard(slot)
        return f"(i32.load (i32.const {slot}))"

    def _number(self, kind: Kind) -> int:
        dice = self._dice
        bits = 8 * SCALARS[kind.head]
        if kind.head == "bool":
            return dice.randrange(2)
        if dice.random() < 0.9 or self.polite:
            value = dice.choice(_NUMBERS[: 16 if dice.random() < 0.97 else None])
        else:
            value = dice.choice(_HUGE)
        return value & ((1 << bits) - 1)

    def _text(self) -> tuple[int, int]:
        """Address and length of a text in the component's encoding."""
        text = self._hint or self._dice.choice(TEXTS)
        if text not in self._texts:
            length, raw = len(text), text.encode()
            if self.encoding == "utf16":
                raw = text.encode("utf-16-le")
                length = len(raw) // 2
            elif self.encoding == "utf8":
                length = len(raw)
            else:
                try:
                    raw = text.encode("latin-1")
                except UnicodeEncodeError:
                    raw = text.encode("utf-16-le")
                    length = len(raw) // 2 | 1 << 31
            if self._texts_end + len(raw) + 1 > TEXTS_END:
                return TEXTS_AT, 0
            self._texts[text] = (self._texts_end, length)
            self._data.append(f'(data (i32.const {self._texts_end}) "{_escaped(raw)}")')
            self._texts_end = rounded(self._texts_end + len(raw), 2)
        return self._texts[text]

    def _span(self, kind: Kind, call: Call) -> tuple[int, int]:
        """Address and length of a string or list."""
        dice = self._dice
        if self._mistake():
            return dice.choice([0, 1, 3, 65_535, HEAP_AT, *_HUGE[:7]]), dice.choice([0, 1, 2, 65_536, *_HUGE[:7]])
        if kind.head == "string":
            return self._text()
        (element,) = kind.parts
        if element is not None and element.head == "u8":
            if dice.random() < 0.7:
                return self._bytes_text()
            return dice.choice([HEAP_AT, HEAP_AT + 1]), self._number(Kind("u32")) % (3 << 16)
        count = (
            dice.choice([0, 1, 1, 2, 3, 5])
            if not (kind.parts[0] and kind.parts[0].head == "borrow")
            else dice.choice([1, 1, 2, 3])
        )
        call.arguments_at = start = rounded(call.arguments_at, align(element))
        call.arguments_at += count * size(element)
        if call.arguments_at > RESULT_AT - 0x1000:
            return start, 0
        for i in range(count):
            self._store(element, start + i * size(element), call)
        return start, count

    def _bytes_text(self) -> tuple[int, int]:
        at, length = self._text()
        return at, length & 0xFFFF

    def _flat(self, kind: Kind | None, call: Call) -> list[str]:
        """Expressions for a made-up value."""
        if kind is None:
            return []
        if kind.head in ("own", "borrow"):
            return [self._handle(kind, call)]
        if kind.head in SCALARS:
            return [f"({flat(kind)[0]}.const {self._number(kind)})"]
        if kind.head in ("string", "list"):
            return [f"(i32.const {number})" for number in self._span(kind, call)]
        if kind.head in ("tuple", "record"):
            return [text for part in kind.parts for text in self._flat(part, call)]
        case = self._case(kind)
        wanted = flat(kind)[1:]
        chosen = cases_of(kind)[case] if case < len(cases_of(kind)) else None
        values = [
            text if core == want else f"(i64.extend_i32_u {text})"
            for text, core, want in zip(self._flat(chosen, call), flat(chosen), wanted, strict=False)
        ]
        return [f"(i32.const {case})", *values, *(f"({core}.const 0)" for core in wanted[len(values) :])]

    def _case(self, kind: Kind) -> int:
        if self._mistake():
            return self._dice.choice([len(cases_of(kind)), 255, 1 << 30])
        if kind.head == "result":
            return int(self._dice.random() < 0.1)
        if kind.head == "option" and self._hint:
            return 1
        return self._dice.randrange(len(cases_of(kind)))

    def _store(self, kind: Kind | None, at: int, call: Call) -> None:
        """Put a made-up value into memory."""
        if kind is None:
            return
        if kind.head in ("own", "borrow"):
            call.setup.append(f"(i32.store (i32.const {at}) {self._handle(kind, call)})")
        elif kind.head in SCALARS:
            store = {1: "i32.store8", 2: "i32.store16", 4: "i32.store", 8: "i64.store"}[size(kind)]
            call.setup.append(f"({store} (i32.const {at}) {self._flat(kind, call)[0]})")
        elif kind.head in ("string", "list"):
            for i, number in enumerate(self._span(kind, call)):
                call.setup.append(f"(i32.store (i32.const {at + 4 * i}) (i32.const {number}))")
        elif kind.head in ("tuple", "record"):
            for offset, part in places(kind):
                self._store(part, at + offset, call)
        else:
            case = self._case(kind)
            call.setup.append(f"(i32.store8 (i32.const {at}) (i32.const {case}))")
            if case < len(cases_of(kind)):
                self._store(cases_of(kind)[case], at + payload_at(kind), call)

    # ----------------------------------------------------------------------------------------------------- calls

    def _weight(self, function: Function) -> float:
        known = next((w for prefix, w in _WEIGHTS.items() if function.interface.startswith(prefix)), 10)
        return known * (1 if self._world.needs[function] else 0.5)

    def _declared(self, function: Function) -> tuple[str, Function]:
        """Its name in the core module, and how this component declares it."""
        if function not in self._used:
            shape = function
            if self.wrong_types and self._dice.random() < 0.1:
                shape = self._wrong(function)
            self._used[function] = (f"f{len(self._used)}", shape)
        return self._used[function]

    def _wrong(self, function: Function) -> Function:
        wrong = self._world.parse(self._dice.choice(_WRONG_TYPES))
        kept = 1 if function.name.startswith("[method]") else 0
        parameters = list(function.parameters)
        how = self._dice.randrange(4)
        if how == 0 and not function.name.startswith("[constructor]"):
            return Function(function.interface, function.name, function.parameters, wrong)
        if how == 1 and len(parameters) > kept:
            parameters.pop()
        elif how == 2 or len(parameters) <= kept:
            parameters.append(("more", wrong))
        else:
            at = self._dice.randrange(kept, len(parameters))
            parameters[at] = (parameters[at][0], wrong)
        return Function(function.interface, function.name, tuple(parameters), function.result)

    def _call(self, function: Function) -> str:
        called, shape = self._declared(function)
        call = Call()
        kinds = [kind for _, kind in shape.parameters]
        if sum(len(flat(kind)) for kind in kinds) > FLAT_MAX:
            whole = Kind("tuple", tuple(kinds))
            call.arguments_at = ARGUMENTS_AT + size(whole)
            self._store(whole, ARGUMENTS_AT, call)
            arguments = [f"(i32.const {ARGUMENTS_AT})"]
        else:
            arguments = [text for kind in kinds for text in self._flat(kind, call)]
        flat_result = flat(shape.result)
        after = [f"(i32.store (i32.const {slot}) (i32.const 0))" for slot in call.consumed if not self._mistake()]
        if len(flat_result) > 1:
            at = RESULT_AT
            if self._mistake():
                at = self._dice.choice([RESULT_AT + 1, RESULT_AT + 4, 0xFFFF, *_HUGE[:7]])
            arguments.append(f"(i32.const {at})")
            made = f"(call ${called} {' '.join(arguments)})"
            if at == RESULT_AT:
                after += self._keep(shape.result)
        elif shape.result is not None and shape.result.head == "own":
            made = f"(i32.store (i32.const {RESULT_AT}) (call ${called} {' '.join(arguments)}))"
            after += self._keep(shape.result)
        else:
            made = f"(call ${called} {' '.join(arguments)})"
            if flat_result:
                made = f"(drop {made})"
        return _guarded(call.guards, [*call.setup, made, *after])

    def _keep(self, result: Kind | None) -> list[str]:
        """Put the handles of a result into slots."""
        kept = []
        for at, when, name in handles(result, RESULT_AT):
            resource = self._world.resource_of(name)
            self._live.add(resource)
            slots = self._slots(resource)
            slot = self._dice.choice([slot for slot in slots if slot not in self._filled] or slots)
            conditions = [f"(i32.eq (i32.load8_u (i32.const {where})) (i32.const {case}))" for where, case in when]
            drop = self._drop(slot, resource) if self.tidy else ""
            self._filled.add(slot)
            kept.append(_guarded(conditions, [drop, f"(i32.store (i32.const {slot}) (i32.load (i32.const {at})))"]))
        return kept

    def _drop(self, slot: int, resource: str, *, again: bool = False) -> str:
        self._filled.discard(slot)
        load = f"(i32.load (i32.const {slot}))"
        clear = "" if again else f"(i32.store (i32.const {slot}) (i32.const 0))"
        return _guarded([] if again else [load], [f"(call $drop-{resource} {load})", clear])

    def _step(self) -> str:
        dice = self._dice
        if dice.random() < 0.08:
            # Whoever drops its outparam has no answer to give.
            live = sorted(self._live - ({"response-outparam"} if self.polite else set()))
            resource = dice.choice(live or self.resources)
            return self._drop(self._slot(resource), resource, again=self._mistake())
        if dice.random() < 0.05:
            inner = "\n".join(self._step() for _ in range(dice.randint(1, 4)))
            rounds = dice.choice([2, 3, 10, 40])
            number = self._loops
            self._loops += 1
            return f"""(global.set $n{number} (i32.const {rounds}))
                (loop $l{number} {inner}
                  (global.set $n{number} (i32.sub (global.get $n{number}) (i32.const 1)))
                  (br_if $l{number} (i32.gt_s (global.get $n{number}) (i32.const 0))))"""
        if dice.random() < 0.02 and not self.polite:
            return dice.choice(["(drop (memory.grow (i32.const 16)))", "(drop (memory.grow (i32.const 1000)))"])
        possible = self._functions
        if not self._mistake():
            wanted = dice.choice(sorted(self._live)) if self._live and dice.random() < 0.7 else None
            needs = self._world.needs
            possible = [f for f in possible if needs[f] <= self._live and (wanted is None or wanted in needs[f])]
        return self._call(dice.choices(possible, [self._weights[f] for f in possible])[0]) if possible else ""

    def _steps(self, count: int) -> str:
        """Calls by chance, and among them those of a few errands in their order."""
        errands = [iter(errand) for errand in _ERRANDS if self._dice.random() < 0.7]
        made: list[str] = []
        while len(made) < count:
            errand = self._dice.choice(errands) if errands and self._dice.random() < 0.6 else None
            name = None if errand is None else next(errand, None)
            made.append(self._step() if name is None else self._errand(name))
        if self._dice.random() < 0.6:
            made += [self._errand(name) for errand in errands for name in errand]
        return "\n".join(made)

    def _errand(self, name: str) -> str:
        self._hint = _HINTS.get(name, "")
        call = self._call(self._by_name[name])
        self._hint = None
        return call

    # ------------------------------------------------------------------------------------------------- component

    def _component(self) -> str:
        dice = self._dice
        self._loops = 0
        self._data: list[str] = []
        start = self._steps(dice.randint(1, 15)) if dice.random() < 0.2 else ""
        programs = []
        for _ in range(self.requests):
            for resource in ("incoming-request", "response-outparam"):
                self._live.add(resource)
                self._filled.add(self._slots(resource)[0])
            programs.append(self._steps(dice.choice([10, 60, 100, 150])))
        nested = self._steps(2) if self.allocator == "nested" else ""
        if self.tidy:
            everything = "".join(self._drop(slot, r) for r in self.resources for slot in self._slots(r))
            programs = [program + everything for program in programs]
        if dice.random() < 0.1:  # large enough to become a part of its own
            raw = dice.randbytes(48 * 1024)
            self._data.append(f'(data (i32.const {HEAP_AT}) "{_escaped(raw)}")')
        request, outparam = (self._slots(r)[0] for r in ("incoming-request", "response-outparam"))
        keep = "".join(
            f"{self._drop(slot, resource) if self.tidy else ''}(i32.store (i32.const {slot}) (local.get {i}))"
            for i, (slot, resource) in enumerate(((request, "incoming-request"), (outparam, "response-outparam")))
        )
        used = dict(self._used.values())
        parts = Parts(used, self.encoding, self.allocator, start, programs, nested, keep, self._loops, self._data)
        return component_text(self._world, parts)


def _escaped(raw: bytes) -> str:
    return "".join(f"\\{byte:02x}" for byte in raw)


def _guarded(conditions: list[str], lines: list[str]) -> str:
    inner = "\n".join(line for line in lines if line)
    for condition in reversed(list(dict.fromkeys(conditions))):
        inner = f"(if {condition} (then {inner}))"
    return inner
