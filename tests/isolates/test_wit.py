"""WIT text, and what is made of it."""

import pytest

from isolates.wit import World


class TestTypeText:
    def scope(self) -> World:
        world = World()
        interface = world.interface("test:scope/it@0.2.12")
        interface.resource("thing")
        interface.enum("color")
        return world

    @pytest.mark.parametrize(
        ("text", "kind"),
        [("u8", 2), ("string", 12), ("list<u8>", 13), ("list<list<u8>>", 13), ("tuple<u8, string>", 15), ("color", 17),
         ("option<own<thing>>", 18), ("result", 19), ("result<_, color>", 19), ("borrow<thing>", 21), ("thing", 21)],
    )  # fmt: skip
    def test_reads(self, text: str, kind: int) -> None:
        assert self.scope().scope.parse(text).kind == kind

    @pytest.mark.parametrize(
        "text", ["", "_", "u9", "list<", "list<u8", "u8 u8", "own<nothing>", "stream<u8>", "tuple<u8,>", "list<u8>>"]
    )
    def test_refuses(self, text: str) -> None:
        with pytest.raises(ValueError, match="type"):
            self.scope().scope.parse(text)

    def test_signatures(self) -> None:
        signature = self.scope().signature("self: borrow<thing>, a: list<tuple<u8, string>>, b: u64) -> result<u8>")
        assert [parameter.kind for parameter in signature.parameters] == [21, 13, 8]
        assert signature.lower is not None
        assert self.scope().signature(")").parameters == []
        assert self.scope().signature(")").lower is None
