"""A stand-in for AWS KMS, which cannot run here: its wire protocol over HTTP, with one key, for a real client."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ARN = "arn:aws:kms:eu-central-1:111122223333:key/0d990263-018e-4e65-a703-eff731de951e"


class Kms(ThreadingHTTPServer):
    """`refusals`: what the next requests are answered instead, as (status, error code)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cipher = AESGCM(AESGCM.generate_key(256))
        self.refusals: list[tuple[int, str]] = []
        self.asked: list[tuple[str, str]] = []
        """Operation and encryption context of each request."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, operation: str, fields: dict[str, Any]) -> tuple[int, dict[str, str]]:
        context = json.dumps(fields["EncryptionContext"], sort_keys=True)
        self.asked.append((operation, context))
        if self.refusals:
            status, code = self.refusals.pop(0)
            return status, {"__type": code, "message": "refused by the test"}
        if fields["KeyId"] != ARN:
            return 400, {"__type": "NotFoundException", "message": "no such key"}
        if operation == "Encrypt":
            nonce = os.urandom(12)
            sealed = nonce + self.cipher.encrypt(nonce, base64.b64decode(fields["Plaintext"]), context.encode())
            return 200, {"CiphertextBlob": base64.b64encode(sealed).decode(), "KeyId": ARN}
        blob = base64.b64decode(fields["CiphertextBlob"])
        try:
            plain = self.cipher.decrypt(blob[:12], blob[12:], context.encode())
        except InvalidTag:
            return 400, {"__type": "InvalidCiphertextException", "message": ""}
        return 200, {"Plaintext": base64.b64encode(plain).decode(), "KeyId": ARN}


class _Handler(BaseHTTPRequestHandler):
    server: Kms

    def do_POST(self) -> None:
        fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, answer = self.server.answer(self.headers["X-Amz-Target"].removeprefix("TrentService."), fields)
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Says nothing."""


@contextmanager
def fake_kms() -> Iterator[Kms]:
    server = Kms()
    thread = threading.Thread(target=server.serve_forever, name="kms", args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
