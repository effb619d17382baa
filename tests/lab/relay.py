"""A way between two machines that is long: relay.py CONTROL LISTEN TO [LISTEN TO...]

Passes on what comes to each address LISTEN to the address TO, and back. CONTROL is a file with two numbers: the ms that everything
takes each way, and the ms that it may take more, by chance; what is sent in order arrives in order. It is looked at for every piece.
SIGUSR1 breaks all connections; what is on its way is lost, answers to what has been executed among it.
"""

import asyncio
import random
import signal
import sys

PIECE = 65536
connections = set()  # tasks


def delay():
    with open(sys.argv[1]) as control:
        least, more = (float(each) for each in control.read().split())
    return (least + random.random() * more) / 1000


async def one_way(reader, writer):
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue(4096)

    async def deliver():
        while True:
            at, piece = await pieces.get()
            await asyncio.sleep(at - loop.time())
            if not piece:
                return
            writer.write(piece)
            await writer.drain()

    async def take():
        at = 0
        while True:
            piece = await reader.read(PIECE)
            at = max(at, loop.time() + delay())
            await pieces.put((at, piece))
            if not piece:
                return

    await asyncio.gather(deliver(), take())


async def relay(reader, writer, to):
    connections.add(asyncio.current_task())
    other = None
    try:
        other_reader, other = await asyncio.open_connection(*to)
        ways = [asyncio.ensure_future(each) for each in (one_way(reader, other), one_way(other_reader, writer))]
        try:
            # An end of one way ends both: neither side speaks on then.
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in ways:
                each.cancel()
    except (OSError, asyncio.CancelledError):
        pass
    finally:
        connections.discard(asyncio.current_task())
        for each in filter(None, (writer, other)):
            each.transport.abort()


def address(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


async def main():
    def break_all():
        print("breaks", len(connections), flush=True)
        for each in list(connections):
            each.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, break_all)
    for listen, to in zip(sys.argv[2::2], sys.argv[3::2]):
        await asyncio.start_server(lambda reader, writer, to=address(to): relay(reader, writer, to), *address(listen))
    print("listens", flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
