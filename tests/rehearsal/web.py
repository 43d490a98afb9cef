"""The internet of a rehearsal: a proxy on the loopback host that answers for the public addresses, and for no other.

Downloads and judges keep their published https addresses. Commands reach them through `HTTPS_PROXY` and trust a
certificate authority that lives as long as the rehearsal; every other host is refused and remembered.
"""

from __future__ import annotations

import datetime
import json
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.loopback_server import LoopbackHandler, LoopbackServer

FORWARDED = ("Authorization", "Content-Type")  # what a judge reads of a request's head


class Web(LoopbackServer):
    """`pages`: files by address without scheme (`host/path`); `services`: http servers by host."""

    def __init__(self, pages: Mapping[str, Path], services: Mapping[str, str], folder: Path):
        super().__init__(("127.0.0.1", 0), WebHandler)
        self.pages, self.services = dict(pages), dict(services)
        self.refused: set[str] = set()
        hosts = sorted({address.split("/")[0] for address in pages} | set(services))
        self.authority, self.context = certificates(hosts, folder)

    def knows(self, host: str) -> bool:
        return host in self.services or any(page.startswith(f"{host}/") for page in self.pages)

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which commands come here for every host but the loopback host."""
        proxy, names = self.url, ("https_proxy", "http_proxy")
        plain = {name: proxy for name in (*names, *(n.upper() for n in names))}
        here = {name: "127.0.0.1,localhost" for name in ("no_proxy", "NO_PROXY")}
        trust = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
        return plain | here | {name: str(self.authority) for name in trust}

    @contextmanager
    def serving(self) -> Iterator[Web]:
        thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed hangs up; nothing to say."""


class WebHandler(LoopbackHandler):
    server: Web
    host = ""

    def do_CONNECT(self) -> None:
        """Speak TLS in the name of the host, then read the request itself; or refuse."""
        host = self.path.rpartition(":")[0]
        if not self.server.knows(host):
            self.refuse(host)
            return
        self.send_response(200, "Connection established")
        self.end_headers()
        self.connection = self.server.context.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb")
        self.host, self.close_connection = host, False

    def do_GET(self) -> None:
        host, path = self._address()
        page = self.server.pages.get(f"{host}{unquote(path)}")
        if page is None:
            if not self.server.knows(host):
                self.refuse(host)
                return
            self.reply(404, b"not found")
            return
        data = page.read_bytes()
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start:
            self.reply(
                206, data[start:], Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}"
            )
        else:
            self.reply(200, data)

    def do_POST(self) -> None:
        host, path = self._address()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if host not in self.server.services:
            self.refuse(host)
            return
        kept = {name: self.headers[name] for name in FORWARDED if name in self.headers}
        request = urllib.request.Request(self.server.services[host] + path, body, kept)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=120) as answer:
                self.reply(answer.status, answer.read(), Content_Type="application/json")
        except urllib.error.HTTPError as error:
            self.reply(error.code, error.read())
        except OSError as error:  # the judge is down
            self.reply(502, str(error).encode())

    def _address(self) -> tuple[str, str]:
        """Host and path of a request, inside TLS or plain."""
        parts = urlsplit(self.path)
        return self.host or parts.hostname or "", parts.path

    def refuse(self, host: str) -> None:
        self.server.refused.add(host)
        said = {"error": f"{host} is not on the loopback host: a rehearsal reaches nothing else"}
        self.reply(403, json.dumps(said).encode())


def certificates(hosts: list[str], folder: Path) -> tuple[Path, ssl.SSLContext]:
    """The file of a new authority, and a server's context with a certificate of it for `hosts`."""
    folder.mkdir(parents=True, exist_ok=True)
    key, leaf = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback rehearsal")])
    now = datetime.datetime.now(datetime.UTC)

    def signed(
        public: ec.EllipticCurvePublicKey, extension: x509.ExtensionType, **names: x509.Name
    ) -> bytes:
        builder = x509.CertificateBuilder(issuer, names.get("subject", issuer), public)
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(days=1))
        builder = builder.not_valid_after(now + datetime.timedelta(days=7))
        made = builder.add_extension(extension, critical=True).sign(key, hashes.SHA256())
        return made.public_bytes(serialization.Encoding.PEM)

    authority, pair = folder / "authority.pem", folder / "pair.pem"
    authority.write_bytes(signed(key.public_key(), x509.BasicConstraints(True, None)))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    alternatives = x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts])
    private = leaf.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    pair.write_bytes(signed(leaf.public_key(), alternatives, subject=subject) + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    return authority, context
