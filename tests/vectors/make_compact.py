#!/usr/bin/env python3
"""Makes compact_token.json from docs/compact-token.md alone, with Python's hmac."""

import base64
import hashlib
import hmac
import json
import pathlib
import struct


def token(row):
    subject, token_id = row["subject"].encode(), row["token_id"].encode()
    signed = struct.pack(">BBII", 1, row["key_id"], row["issued"], row["expires"])
    signed += bytes([len(subject)]) + subject + bytes([len(token_id)]) + token_id
    signed += bytes.fromhex(row["claims_hex"])
    mac = hmac.digest(bytes.fromhex(row["secret_hex"]), signed, hashlib.sha256)
    return base64.urlsafe_b64encode(signed + mac).rstrip(b"=").decode()


SECRET = bytes(range(32)).hex()
ROWS = [
    {"key_id": 1, "subject": "u", "token_id": "", "claims_hex": ""},
    {"key_id": 7, "subject": "ada", "token_id": "t1", "claims_hex": b'{"role":"admin"}'.hex()},
    {"key_id": 255, "subject": "zoë", "token_id": "🔑", "claims_hex": "00ff"},
    {"key_id": 0, "subject": "s" * 255, "token_id": "i" * 255, "claims_hex": "ab" * 300},
]
for row in ROWS:
    row |= {"secret_hex": SECRET, "issued": 1_700_000_000, "expires": 1_700_003_600}
    row["token"] = token(row)
out = pathlib.Path(__file__).parent / "compact_token.json"
out.write_text(json.dumps({"tokens": ROWS}, indent=1, ensure_ascii=False) + "\n")
