"""A Django Channels application as its tutorial has it, served by daphne.

`/open` and `/ws` echo; `/ws` accepts a client with a good `token` in the query or the cookie `token`
and refuses others before the 101 (403). All are behind AllowedHostsOriginValidator, so that a
client needs an Origin of an allowed host. The subprotocol `echo.v1` is answered if it is offered.

Actions (see control.js): close?code= (daphne drops the reason), send?text=, sockets.
"""

import base64
import hashlib
import hmac
import json
import os
import time
from urllib.parse import parse_qs

from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost", "app.example.com"],
    SECRET_KEY="only for the tests",
    INSTALLED_APPS=["channels"],
    ROOT_URLCONF=__name__,
    USE_TZ=True,
)

import django  # noqa: E402

django.setup()

from channels.generic.http import AsyncHttpConsumer  # noqa: E402
from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402
from django.urls import re_path  # noqa: E402

urlpatterns = []
events = []
consumers = set()


def log(what, **details):
    events.append({"what": what, "at": int(time.time() * 1000), **details})


def subject_of(token):
    """The token's subject, or None."""
    try:
        signed, signature = token.rsplit(".", 1)
        key = os.environ["TOKEN_SECRET"].encode()
        digest = hmac.new(key, signed.encode(), hashlib.sha256).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != signature:
            return None
        body = signed.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return claims["sub"] if claims["exp"] > time.time() else None
    except (AttributeError, ValueError, IndexError):
        return None


def credential(scope):
    query = parse_qs(scope["query_string"].decode())
    if "token" in query:
        return query["token"][0]
    for name, value in scope["headers"]:
        if name == b"cookie":
            for pair in value.decode().split("; "):
                if pair.startswith("token="):
                    return pair[len("token=") :]
    return None


class Echo(AsyncWebsocketConsumer):
    ids = 0

    async def connect(self):
        Echo.ids += 1
        self.id = Echo.ids
        headers = [[name.decode(), value.decode()] for name, value in self.scope["headers"]]
        query = self.scope["query_string"].decode()
        peer = "{}:{}".format(*self.scope["client"])
        target = self.scope["path"] + (f"?{query}" if query else "")
        log("request", method="GET", target=target, headers=headers, peer=peer)
        user = subject_of(credential(self.scope))
        if user is None and self.scope["path"] != "/open":
            log("answer", status=403)
            await self.close()
            return
        consumers.add(self)
        log("answer", status=101)
        log("open", id=self.id, user=user)
        offered = self.scope["subprotocols"]
        await self.accept("echo.v1" if "echo.v1" in offered else None)

    async def receive(self, text_data=None, bytes_data=None):
        if text_data is not None:
            log("message", id=self.id, text=text_data[:300], size=len(text_data))
        else:
            log("message", id=self.id, size=len(bytes_data))
        await self.send(text_data, bytes_data)

    async def disconnect(self, code):
        if self in consumers:
            consumers.discard(self)
            clean = code != 1006
            if clean:
                log("close", id=self.id, code=None if code == 1005 else code)
            log("end", id=self.id, clean=clean)


async def act(name, query):
    if name == "close":
        everybody = list(consumers)
        for consumer in everybody:
            code = query.get("code", [None])[0]
            await consumer.close(int(code) if code else None)
        return len(everybody)
    if name == "send":
        for consumer in list(consumers):
            await consumer.send(query["text"][0])
        return len(consumers)
    if name == "sockets":
        return len(consumers)
    if name == "clear":
        events.clear()
        return 0
    return events


class ControlConsumer(AsyncHttpConsumer):
    async def handle(self, body):
        name = self.scope["url_route"]["kwargs"]["name"]
        answer = await act(name, parse_qs(self.scope["query_string"].decode()))
        headers = [(b"Content-Type", b"application/json")]
        await self.send_response(200, json.dumps(answer).encode(), headers=headers)


application = ProtocolTypeRouter(
    {
        "http": URLRouter([re_path(r"^_control/(?P<name>\w+)$", ControlConsumer.as_asgi())]),
        "websocket": AllowedHostsOriginValidator(
            URLRouter([re_path(r"^(?:ws|open)$", Echo.as_asgi())])
        ),
    }
)
