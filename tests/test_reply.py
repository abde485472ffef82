"""relay/reply.py: what one client gets, whether it reads or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from asgiref.sync import async_to_sync

from relay.reply import MAX_BUFFERED_BYTES, Head, Reply

HEAD = Head(200, ())


def run(story: Callable[[], Awaitable[None]]) -> None:
    async_to_sync(story)()


async def read(reply: Reply) -> bytes:
    return b"".join([chunk async for chunk in reply.chunks()])


def test_chunks_arrive_in_order_and_end() -> None:
    async def story() -> None:
        reply = Reply()
        reply.start(HEAD)
        await reply.put(b"a")
        await reply.put(b"b")
        reply.end()
        assert await reply.head() == HEAD
        assert await read(reply) == b"ab"

    run(story)


def test_a_reader_that_stalls_stops_the_writer() -> None:
    async def story() -> None:
        reply = Reply()
        reply.start(HEAD)
        writing = asyncio.ensure_future(reply.put(b"x" * (MAX_BUFFERED_BYTES + 1)))
        await asyncio.sleep(0.01)
        assert not writing.done()
        chunks = reply.chunks()
        assert len(await anext(chunks)) == MAX_BUFFERED_BYTES + 1
        await asyncio.wait_for(writing, 1)
        await chunks.aclose()

    run(story)


def test_a_client_that_leaves_frees_the_writer_and_is_reported_once() -> None:
    async def story() -> None:
        reply, left = Reply(), []
        reply.on_client_left = lambda: left.append(True)
        reply.start(HEAD)
        writing = asyncio.ensure_future(reply.put(b"x" * (MAX_BUFFERED_BYTES + 1)))
        await asyncio.sleep(0.01)
        reply.leave()
        reply.leave()
        await asyncio.wait_for(writing, 1)
        await reply.put(b"more")
        assert left == [True]

    run(story)


def test_leaving_after_the_last_byte_means_nothing() -> None:
    async def story() -> None:
        reply, left = Reply(), []
        reply.on_client_left = lambda: left.append(True)
        reply.start(HEAD)
        await reply.put(b"all")
        reply.end()
        assert await read(reply) == b"all"
        reply.leave()
        assert (left, reply.client_left) == ([], False)

    run(story)


def test_keep_alives_fill_silence_and_only_silence() -> None:
    async def story() -> None:
        reply = Reply()
        reply.start(HEAD)
        reply.keep_alive(b"~", after=0.02)
        reading = asyncio.ensure_future(read(reply))
        for _ in range(4):
            await asyncio.sleep(0.005)
            await reply.put(b".")
        await asyncio.sleep(0.05)
        reply.end()
        text = await reading
        assert text.startswith(b"....~")
        assert text.strip(b".").strip(b"~") == b""

    run(story)


def test_a_reply_without_a_head_ends_the_wait_for_it() -> None:
    async def story() -> None:
        reply = Reply()
        waiting = asyncio.ensure_future(reply.head())
        await asyncio.sleep(0)
        reply.end()
        done, _ = await asyncio.wait([waiting], timeout=1)
        assert done

    run(story)


def test_a_client_that_leaves_a_settled_call_is_nobodys_matter() -> None:
    """Told late, a call on `drain` would count as draining for ever."""

    async def leave_late() -> list[str]:
        told: list[str] = []
        reply = Reply()
        reply.on_client_left = lambda: told.append("left")
        reply.start(HEAD)
        await reply.put(b"last")
        reply.end()
        reply.leave()
        return told

    assert async_to_sync(leave_late)() == []
