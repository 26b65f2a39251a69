"""`connect` with real servers: each cause of a failure has its own error, which says what to do."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ingest.postgres.connect import connect
from localcloud.processes import free_ports
from shared.errors import AccessDenied, NotFound, StackTopicsError, TerminalError, TransientError
from shared.secrets import Secrets
from shared.services import Services
from tests.postgres_fixtures import Database
from tests.world import settings


def services(database: Database, password: str | None = None, **changes: Any) -> Services:
    server = database.server
    values: dict[str, Any] = {
        "postgres_host": server.host,
        "postgres_port": server.port,
        "postgres_database": server.database,
        "postgres_user": server.user,
        "postgres_sslmode": "disable",
    }
    secrets = Secrets({"POSTGRES_PASSWORD": password or server.password})
    return Services().replace(settings=settings(**values | changes), secrets=secrets)


def test_a_connection_is_a_new_one_each_time(database: Database) -> None:
    made = services(database)
    with closing(connect(made)) as first, closing(connect(made)) as second:
        assert first.info.backend_pid != second.info.backend_pid
        assert first.info.parameter_status("application_name") == "stacktopics"


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"password": "wrong"}, AccessDenied, "refuses stacktopics: .*password authentication failed"),
        ({"postgres_user": "nobody"}, AccessDenied, "refuses nobody: .*password authentication failed"),
        ({"postgres_database": "none"}, NotFound, r'/none: .*database "none" does not exist'),
        ({"postgres_host": "no-such-host.invalid"}, TransientError, "no-such-host.invalid.* cannot be reached"),
        (
            {"postgres_sslmode": "verify-full"},
            TerminalError,
            "server does not support SSL, but SSL was required; enable TLS on the server",
        ),
    ],
)
def test_each_cause_of_a_failed_connection_has_its_own_error(
    database: Database, changes: dict[str, Any], error: type[StackTopicsError], said: str
) -> None:
    with pytest.raises(error, match=said) as raised:
        connect(services(database, **changes))
    assert type(raised.value) is error


def test_a_port_without_a_server_is_a_transient_error(database: Database) -> None:
    with pytest.raises(TransientError, match=r"cannot be reached: .*Connection refused"):
        connect(services(database, postgres_port=free_ports(1)[0]))


def test_a_refused_password_is_read_again(database: Database) -> None:
    class Vault:
        vault_url = "https://vault"
        asked = 0

        def get_secret(self, name: str) -> Any:
            self.asked += 1
            return type("Secret", (), {"value": "wrong" if self.asked == 1 else database.server.password})()

    made = services(database).replace(secrets=Secrets({}, Vault()))  # type: ignore[arg-type]
    with pytest.raises(AccessDenied):
        connect(made)
    connect(made).close()


# ---- TLS ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Key and self-signed certificate of a server with the name localhost."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is needed to make a certificate")
    folder = tmp_path_factory.mktemp("certificate")
    key, made = folder / "key.pem", folder / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(made)]
    subprocess.run([*command, *subject], check=True, capture_output=True)
    return key, made


@contextmanager
def tls_before(database: Database, certificate: tuple[Path, Path]) -> Iterator[int]:
    """A port that does the TLS handshake of Postgres and forwards all later bytes to the server, which has no TLS."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate[1], certificate[0])
    threads: list[threading.Thread] = []

    def passes(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            return
        finally:
            with suppress(OSError):  # `close` alone would not wake the receiving thread
                target.shutdown(socket.SHUT_RDWR)

    def serve(client: socket.socket) -> None:
        with client:
            assert client.recv(8)[4:] == b"\x04\xd2\x16\x2f"  # SSLRequest
            client.sendall(b"S")
            try:
                secured = context.wrap_socket(client, server_side=True)
            except (ssl.SSLError, OSError):
                return
            with secured, socket.create_connection((database.server.host, database.server.port)) as server:
                back = threading.Thread(target=passes, args=(server, secured))
                back.start()
                passes(secured, server)
                back.join()

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(client,)))
            threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        acceptor = threading.Thread(target=accept, args=(listener,))
        acceptor.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for thread in threads:
                thread.join()


def test_a_server_is_trusted_only_by_its_certificate(
    database: Database, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted = str(certificate[1])
    with tls_before(database, certificate) as port:
        verified: dict[str, Any] = {"postgres_sslmode": "verify-full", "postgres_port": port}
        with pytest.raises(TerminalError, match="certificate verify failed; set POSTGRES_SSLROOTCERT") as refused:
            connect(services(database, **verified, postgres_host="localhost"))
        assert "Amazon's bundle" in str(refused.value)
        with pytest.raises(TerminalError, match=r"/no/such/file.* does not exist.*; set POSTGRES_SSLROOTCERT"):
            connect(services(database, **verified, postgres_host="localhost", postgres_sslrootcert="/no/such/file"))
        with closing(
            connect(services(database, **verified, postgres_host="localhost", postgres_sslrootcert=trusted))
        ) as connection:
            assert connection.info.ssl_in_use
        with pytest.raises(TerminalError, match="POSTGRES_HOST must be a name in the certificate"):
            connect(services(database, **verified, postgres_host="127.0.0.1", postgres_sslrootcert=trusted))
        monkeypatch.setenv("SSL_CERT_FILE", trusted)  # in place of the system's certificates
        with closing(connect(services(database, **verified, postgres_host="localhost"))) as connection:
            assert connection.info.ssl_in_use
