"""Runs Autobahn's cases against the gateway and compares the verdicts with the committed ones.

`conformance.json` holds the verdict of every case under `profile = "conformance"`, and
`production.json` those that differ under the default profile, each with its reason. A verdict is
[behaviour, behaviour while closing, the gateway's close code].
"""

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

from kosoku import FailureError, run_fuzzingclient

HERE = pathlib.Path(__file__).parent
BINARY = os.environ["PORTCULLIS_BIN"]
# Autobahn has no cases 8; 12 and 13 are about compression, which the gateway does not offer.
CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"]
FORBIDDEN = {"FAILED", "NON-STRICT", "ERROR", "UNIMPLEMENTED"}
FORBIDDEN_CLOSE = {"FAILED", "FAILED BY CLIENT", "UNCLEAN", "WRONG CODE"}
# Most cases wait for a second or do nothing but wait; some move 16 MiB within 10 s and more.
CONCURRENCY = 8
PATIENCE = 30

CONFIG = """
[gateway]
workers = 1
log = {{ format = "json", level = "info,portcullis::close=off" }}
[limits]
profile = "{profile}"
client_buffers = 256
[[listener]]
address = "127.0.0.1:{plain}"
[[listener]]
address = "127.0.0.1:{tls}"
tls = {{ certificate = "gate.pem", key = "gate.key" }}
[[auth]]
name = "query"
kind = "jwt"
carriers = ["query:token"]
keys = [{{ secret_file = "key" }}]
[[route]]
path = "/autobahn"
origins = []
origin_absent = "allow"
auth = "query"
backend = "echo"
[[backend]]
name = "echo"
endpoints = ["unix:{folder}/echo.sock"]
"""


def free_ports(count):
    """Ports that nobody uses and that the kernel gives to no outgoing connection."""
    ports = []
    for port in range(12_000 + os.getpid() % 1_000 * 16, 32_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    sys.exit("no port is free")


def prepare(folder):
    """A key, a certificate and both configurations, in `folder`; the ports."""
    plain, tls = free_ports(2)
    key = folder / "key"
    key.write_bytes(os.urandom(32).hex().encode())
    key.chmod(0o600)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", folder / "gate.key", "-out", folder / "gate.pem", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )
    (folder / "gate.key").chmod(0o600)
    for profile in ("conformance", "production"):
        text = CONFIG.format(profile=profile, folder=folder, plain=plain, tls=tls)
        (folder / f"{profile}.toml").write_text(text)
    return plain, tls


@contextlib.contextmanager
def running(folder, *arguments):
    """A process of ours, which logs into a file; the file's path."""
    log = folder / f"{arguments[0]}-{time.monotonic_ns()}.log"
    with open(log, "wb") as out:
        process = subprocess.Popen([BINARY, *arguments], stdout=out, stderr=out, cwd=folder)
    try:
        yield log, process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()


def until(what, found, log, process):
    """Waits until `found` returns something true, and returns that."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        result = found(log.read_text())
        if result:
            return result
        time.sleep(0.05)
    sys.exit(f"{what}: not so\n{log.read_text()}")


class TlsAdapter:
    """kosoku speaks no TLS: it connects here, and what it says goes on inside TLS."""

    def __init__(self, port, certificate):
        self.port = port
        self.context = ssl.create_default_context(cafile=str(certificate))
        self.loop = asyncio.new_event_loop()
        self.handshakes = 0
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        served = asyncio.run_coroutine_threadsafe(self.serve(), self.loop)
        self.address = served.result(PATIENCE)

    async def serve(self):
        server = await asyncio.start_server(self.relay, "127.0.0.1", 0)
        return server.sockets[0].getsockname()[1]

    async def relay(self, reader, writer):
        inner, outer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.context, server_hostname="localhost"
        )
        self.handshakes += 1
        # Each side's end ends the other: TLS in Python cannot be half closed.
        await asyncio.gather(self.pipe(reader, outer), self.pipe(inner, writer))

    @staticmethod
    async def pipe(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()


async def verdicts(url, cases):
    """The verdict of every case."""
    try:
        results = await run_fuzzingclient(url, cases, concurrency=CONCURRENCY)
    except FailureError as failure:
        results = failure.results
    return {
        result.case_id: [
            result.behavior.value, result.behavior_close.value, result.remote_close_code
        ]
        for result in results
    }


def run_all(cases):
    """The verdicts of each profile and transport."""
    runs = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        plain, tls = prepare(folder)
        listen = f"unix:{folder}/echo.sock"
        with running(folder, "echo-backend", "--listen", listen) as (log, process):
            until("the backend listens", lambda _: (folder / "echo.sock").exists(), log, process)
            for profile in ("conformance", "production"):
                config = ["--config", f"{profile}.toml"]
                mint = [BINARY, "token", "mint", *config, "--auth", "query", "--subject",
                        "autobahn", "--expires-in", "1h"]
                token = subprocess.run(mint, check=True, capture_output=True, cwd=folder)
                with running(folder, "run", *config) as (log, process):
                    until("the link is up", lambda text: "link ready" in text, log, process)
                    adapter = TlsAdapter(tls, folder / "gate.pem")
                    for transport, port in (("plain", plain), ("TLS", adapter.address)):
                        url = f"ws://127.0.0.1:{port}/autobahn?token={token.stdout.decode().strip()}"
                        begun = time.monotonic()
                        found = asyncio.run(verdicts(url, cases))
                        runs[profile, transport] = found
                        took = time.monotonic() - begun
                        print(f"{profile} {transport}: {len(found)} cases in {took:.1f} s")
                    if adapter.handshakes < len(found):
                        sys.exit(f"only {adapter.handshakes} of {len(found)} cases were inside TLS")
    return runs


def compare(runs, conformance, production):
    """What is not as expected, as lines."""
    wrong = []
    for (profile, transport), found in runs.items():
        for case, verdict in found.items():
            expected = [conformance.get(case)]
            if profile == "production" and case in production:
                entry = production[case]
                # Where it depends on how fast the backend answers, both may happen.
                expected = [entry["verdict"]] + (expected if entry.get("races") else [])
            if verdict not in expected:
                wrong.append(f"{profile} {transport} {case}: {verdict}, expected {expected}")
            strict = verdict[0] not in FORBIDDEN and verdict[1] not in FORBIDDEN_CLOSE
            if profile == "conformance" and not strict:
                wrong.append(f"{profile} {transport} {case}: {verdict} is not conforming")
    for case, entry in production.items():
        if not entry.get("reason"):
            wrong.append(f"production.json {case}: no reason")
    return wrong


def update(runs, production):
    """Writes this run's verdicts; reasons that are there stay."""
    conformance = runs["conformance", "plain"]
    differing = {}
    for case, verdict in runs["production", "plain"].items():
        before = production.get(case, {})
        if before.get("races") or verdict != conformance[case]:
            kept = before.get("verdict", verdict) if before.get("races") else verdict
            differing[case] = {"reason": "", **before, "verdict": kept}
    for name, table in (("conformance", conformance), ("production", differing)):
        lines = [f"  {json.dumps(case)}: {json.dumps(entry)}" for case, entry in table.items()]
        (HERE / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main():
    parser = argparse.ArgumentParser(prog="tests/conformance/run")
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--only", action="append", metavar="CASES")
    arguments = parser.parse_args()

    def load(name):
        path = HERE / name
        return json.loads(path.read_text()) if path.exists() else {}

    runs = run_all(arguments.only or CASES)
    if arguments.update and not arguments.only:
        update(runs, load("production.json"))
    conformance, production = load("conformance.json"), load("production.json")
    wrong = compare(runs, conformance, production)
    if not arguments.only:
        missing = [case for case in conformance if case not in runs["conformance", "plain"]]
        wrong += [f"{case} is expected, and did not run" for case in missing]
    for line in wrong:
        print(line)
    print(f"{sum(map(len, runs.values()))} verdicts, {len(wrong)} not as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
