#!/usr/bin/env python3
"""Checks plug.json with Python's own hashlib and hmac: every key and every MAC."""

import base64
import hashlib
import hmac
import json
import pathlib

ALGORITHMS = {"SFMyNTY": "sha256", "SFMzODQ": "sha384", "SFM1MTI": "sha512"}


def decode(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def check(message, key):
    algorithm, payload, mac = message.split(".")
    signed = f"{algorithm}.{payload}".encode()
    assert decode(mac) == hmac.digest(key, signed, ALGORITHMS[algorithm]), message
    assert decode(payload)[0] == 131, message


def unmask(masked):
    token = decode(masked[:32])
    return bytes(a ^ b for a, b in zip(token, masked[32:].encode(), strict=True))


vectors = json.loads((pathlib.Path(__file__).parent / "plug.json").read_text())
base = vectors["secret_key_base"].encode()
for row in vectors["tokens"]:
    salt = vectors["salt"].encode()
    key = hashlib.pbkdf2_hmac(row["digest"], base, salt, row["iterations"], row["length"])
    assert key.hex() == row["key_hex"], row["name"]
    check(row["token"], key)
key = hashlib.pbkdf2_hmac("sha256", base, vectors["signing_salt"].encode(), 1000, 32)
assert key.hex() == vectors["session_key_hex"]
for row in vectors["sessions"]:
    check(row["cookie"], key)
    payload = decode(row["cookie"].split(".")[1])
    for masked in row["csrf"]:
        assert unmask(masked) in payload, row["name"]
print(len(vectors["tokens"]), "tokens and", len(vectors["sessions"]), "sessions are right")
