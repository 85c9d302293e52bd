"""Orders from other machines, in virtual time."""

import asyncio

import pytest

from everwarm.order_book import ORDERS_MAX, TAKEN_S_MAX, OrderBook, OrderRefused
from tests.simulation.virtual_loop import play


def test_whoever_asks_waits_for_the_answer_however_long_it_takes() -> None:
    async def scenario() -> None:
        book = OrderBook()
        asking = [asyncio.create_task(book.put(order)) for order in (b"one", b"two")]
        first, second = await book.take(), await book.take()
        assert (first[1], second[1]) == (b"one", b"two")
        await asyncio.sleep(200.0)
        book.answer(second[0], b"2")
        book.answer(first[0], b"1")
        assert await asyncio.gather(*asking) == [b"1", b"2"]

    play(scenario())


def test_the_owner_waits_for_orders() -> None:
    async def scenario() -> None:
        book = OrderBook()
        taking = asyncio.create_task(book.take())
        await asyncio.sleep(1_000.0)
        asking = asyncio.create_task(book.put(b"one"))
        number, order = await taking
        book.answer(number, order)
        assert await asking == b"one"

    play(scenario())


def test_without_an_owner_nobody_waits_for_ever() -> None:
    async def scenario() -> None:
        book, loop = OrderBook(), asyncio.get_running_loop()
        began_s = loop.time()
        with pytest.raises(OrderRefused, match="does not answer"):
            await book.put(b"one")
        assert loop.time() - began_s == pytest.approx(TAKEN_S_MAX)
        asking = asyncio.create_task(book.put(b"two"))
        number, order = await book.take()  # not the one whose client has left
        assert order == b"two"
        book.answer(number, b"2")
        assert await asking == b"2"
        book.answer(number, b"once more")  # nobody waits for it

    play(scenario())


def test_there_are_not_many_at_once() -> None:
    async def scenario() -> None:
        book = OrderBook()
        asking = [asyncio.create_task(book.put(b"")) for _ in range(ORDERS_MAX)]
        await asyncio.sleep(0.0)
        with pytest.raises(OrderRefused, match="Too many"):
            await book.put(b"")
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
        assert book._orders == {}

    play(scenario())
