"""PyPI's `websockets`, driven by a check: commands are JSON lines on stdin, events on stdout.

    websockets_client.py URL ORIGIN [--reconnect]

Commands: {"send": TEXT}, {"binary": BASE64}, {"ping": true}, {"close": [CODE, REASON]}.
Events: {"open": SUBPROTOCOL}, {"text": …}, {"binary": …}, {"pong": true}, {"close": [CODE, REASON]},
{"refused": STATUS}.
"""

import asyncio
import base64
import json
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus


def say(**event):
    print(json.dumps(event), flush=True)


async def commands(socket, lines):
    while True:
        line = await lines.get()
        command = json.loads(line)
        if "send" in command:
            await socket.send(command["send"])
        if "binary" in command:
            await socket.send(base64.b64decode(command["binary"]))
        if "ping" in command:
            await (await socket.ping())
            say(pong=True)
        if "close" in command:
            await socket.close(*command["close"])


async def talk(socket, lines):
    say(open=socket.subprotocol)
    task = asyncio.create_task(commands(socket, lines))
    try:
        async for message in socket:
            if isinstance(message, str):
                say(text=message)
            else:
                say(binary=base64.b64encode(message).decode())
    except ConnectionClosed:
        pass
    finally:
        task.cancel()
        say(close=[socket.close_code, socket.close_reason])


async def main(url, origin, reconnect):
    lines = asyncio.Queue()
    reader = asyncio.StreamReader(limit=8 << 20)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def read():
        while line := await reader.readline():
            await lines.put(line)

    reading = asyncio.create_task(read())
    options = {
        "origin": origin or None,
        "subprotocols": ["other", "echo.v1"],
        "ping_interval": 0.5,
        "max_size": None,
    }
    if reconnect:
        async for socket in connect(url, **options):
            await talk(socket, lines)
    else:
        try:
            async with connect(url, **options) as socket:
                await talk(socket, lines)
        except InvalidStatus as error:
            say(refused=error.response.status_code)
        except InvalidMessage:
            # daphne's refusal has no field at all, which this client does not take for an answer.
            say(refused=None)
    reading.cancel()


asyncio.run(main(sys.argv[1], sys.argv[2], "--reconnect" in sys.argv))
