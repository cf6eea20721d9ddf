"""A server in Python's asyncio: a thread, a subprocess and a timer beside it. `server.py PORT DIR`.

Speaks what tests/apps/README.md tells.
"""

import asyncio
import pathlib
import queue
import subprocess
import sys
import threading
import time

PORT, DIR = int(sys.argv[1]), pathlib.Path(sys.argv[2])


class State:
    def __init__(self):
        self.count = 0
        self.items = {}
        self.ticks = 0
        self.beats = 0
        self.log = open(DIR / "log", "ab", buffering=0)


state = State()
work, done = queue.Queue(), queue.Queue()


def square():
    """A thread that computes for the event loop."""
    while True:
        done.put(work.get() ** 2)


def beat():
    """A thread that sleeps in small pieces."""
    while True:
        time.sleep(0.005)
        state.beats += 1


async def tick():
    while True:
        await asyncio.sleep(0.005)
        state.ticks += 1


async def grows(what):
    before = what()
    for _ in range(1000):
        await asyncio.sleep(0.005)
        if what() > before:
            return True
    return False


async def add(child):
    state.count += 1
    number = state.count
    state.items[number] = f"item {number}"
    state.log.write(b"%d\n" % number)
    child.stdin.write(b"%d\n" % number)
    echoed = int(await child.stdout.readline())
    work.put(number)
    squared = await asyncio.get_running_loop().run_in_executor(None, done.get)
    if echoed != number or squared != number * number:
        return f"failed at {number}: the child said {echoed}, the thread {squared}"
    return f"ok {number}"


async def check(child):
    if child.returncode is not None:
        return f"failed: the child ended with {child.returncode}"
    if not await grows(lambda: state.ticks):
        return "failed: the event loop's timer stands still"
    if not await grows(lambda: state.beats):
        return "failed: a sleeping thread stands still"
    if len(state.items) != state.count or state.items.get(state.count, "item 0") != f"item {state.count}":
        return f"failed: {len(state.items)} items, count {state.count}"
    ran = await asyncio.create_subprocess_exec("/bin/echo", "new", stdout=subprocess.PIPE)
    said, _ = await ran.communicate()
    if said != b"new\n" or ran.returncode != 0:
        return f"failed: a new child said {said} and ended with {ran.returncode}"
    return f"ok {state.count}"


async def main():
    child = await asyncio.create_subprocess_exec(
        "/bin/cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    one_at_a_time = asyncio.Lock()

    async def client(reader, writer):
        while line := await reader.readline():
            async with one_at_a_time:
                said = await (add(child) if line == b"add\n" else check(child))
            writer.write(said.encode() + b"\n")
            await writer.drain()
        writer.close()

    for run in square, beat:
        threading.Thread(target=run, daemon=True).start()
    ticking = asyncio.create_task(tick())
    server = await asyncio.start_server(client, "127.0.0.1", PORT)
    async with server:
        await server.serve_forever()
    ticking.cancel()


asyncio.run(main())
