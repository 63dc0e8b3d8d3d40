"""Webhooks, delivered to a real HTTP server: order, retries, dead letters, what is refused, and a killed deliverer."""

from __future__ import annotations

import math
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from noa.errors import ConflictError, InvalidInputError, ServiceError, SettingsError, StorageError
from noa.settings import RegistrySettings, WebhookSettings
from noa_registry import Event, Registry, heartbeat_file
from noa_registry.events.delivery import Delivery
from noa_registry.events.http_post import Answer, Request, post, read_retry_after
from noa_registry.events.public_addresses import is_public, resolve
from noa_registry.events.webhooks import Webhook, build_webhook, event_body, sign_body
from webhook_receiver import SECRET, Receiver

# Nothing here is about files: a local folder on both databases.
pytestmark = pytest.mark.usefixtures("artifact_dir")


def hook(port: int, **changes: Any) -> WebhookSettings:
    values: dict[str, Any] = {
        "url": f"http://127.0.0.1:{port}/noa",
        "secret": SECRET,
        "allow_private": True,
        "retry_base_s": 0.01,
        "retry_max_s": 0.05,
        "timeout_s": 5.0,
        **changes,
    }
    return WebhookSettings.model_validate(values)


@contextmanager
def delivering(registry: Registry, folder: Path, **hooks: WebhookSettings) -> Iterator[list[str]]:
    """Deliver in a thread; gives the lines of the log."""
    stop, lines, failures = threading.Event(), list[str](), list[BaseException]()

    def run() -> None:
        try:
            registry.events.deliver(hooks, state_dir=folder, stop=stop, tell=lines.append)
        except BaseException as exc:  # noqa: BLE001  # raised again in the test's own thread
            failures.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        # A new webhook begins with what happens after it is known.
        wait_until(lambda: len(hooks) <= sum(c.consumer.startswith("webhook:") for c in registry.events.consumers()))
        yield lines
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    assert failures == []


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def happen(registry: Registry, formats: Any, name: str = "digits", count: int = 1) -> None:
    for _ in range(count):
        registry.register(formats.draft(name=name), actor="ada")


def done(registry: Registry, name: str = "ci") -> Callable[[], bool]:
    """Return whether a webhook has nothing left to do."""
    newest = registry.events.newest(limit=1)[0].id
    return lambda: [c.last_id for c in registry.events.consumers() if c.consumer == f"webhook:{name}"] == [newest]


def test_events_come_signed_in_order_and_once_while_all_is_well(
    registry: Registry, formats: Any, tmp_path: Path
) -> None:
    happen(registry, formats)  # before the webhook was known: not sent
    with Receiver() as receiver, delivering(registry, tmp_path, ci=hook(receiver.port)) as lines:
        registry.promote("digits", 1, reason="first", actor="bob")
        happen(registry, formats, count=3)
        received = receiver.wait_for(4)
        wait_until(done(registry))
    events = registry.events.read("test")[1:]
    assert [one.sequence for one in received] == [event.id for event in events]
    first = received[0]
    assert all(one.is_genuine for one in received)
    assert (first.json["kind"], first.json["model"], first.json["data"]) == (
        "alias.promoted",
        "digits",
        dict(events[0].payload),
    )
    assert len({one.headers["Noa-Event-Id"] for one in received}) == 4
    assert first.headers["Noa-Event-Id"] == first.json["id"]
    assert (first.headers["Noa-Event-Kind"], first.headers["Noa-Attempt"]) == ("alias.promoted", "1")
    assert first.headers["Content-Type"] == "application/json"
    assert not any(SECRET in line for line in lines)
    assert SECRET not in repr(hook(1))
    assert receiver.sequences() == [event.id for event in events]


def test_a_changed_body_or_timestamp_is_not_genuine() -> None:
    body = b'{"id":"1"}'
    signature = sign_body(SECRET, 100, body)
    assert signature == sign_body(SECRET, 100, body)
    assert signature not in (
        sign_body(SECRET, 101, body),
        sign_body(SECRET, 100, body + b" "),
        sign_body("x", 100, body),
    )


def test_only_the_kinds_and_models_that_are_asked_for_are_sent(
    registry: Registry, formats: Any, tmp_path: Path
) -> None:
    with Receiver() as receiver:
        wanted = hook(receiver.port, events=["alias.*"], models=["a"])
        with delivering(registry, tmp_path, ci=wanted):
            for name in ("a", "b"):
                happen(registry, formats, name)
                registry.promote(name, 1, reason="r", actor="bob")
            wait_until(done(registry))
            assert [(one.json["model"], one.json["kind"]) for one in receiver.received] == [("a", "alias.promoted")]


def test_a_failing_model_is_tried_again_in_order_and_holds_up_no_other(
    registry: Registry, formats: Any, tmp_path: Path
) -> None:
    mended = threading.Event()

    def answer(request: Any, _before: int) -> tuple[int, dict[str, str]]:
        return (500 if request.json["model"] == "bad" and not mended.is_set() else 200), {}

    with Receiver(answer) as receiver:
        settings = hook(receiver.port, max_attempts=100)
        with delivering(registry, tmp_path, ci=settings) as lines:
            happen(registry, formats, "bad", count=2)
            happen(registry, formats, "good", count=3)
            happen(registry, formats, "bad")
            wait_until(lambda: len(receiver.sequences("good")) == 3)
            wait_until(lambda: len(receiver.sequences("bad")) >= 4)
            assert set(receiver.sequences("bad")) == {1}  # the second waits for the first
            mended.set()
            wait_until(done(registry))
        bad = receiver.sequences("bad")
        assert sorted(set(bad)) == [1, 2, 6]
        assert bad == sorted(bad)
        assert receiver.sequences("good") == [3, 4, 5]
        attempts = [int(one.headers["Noa-Attempt"]) for one in receiver.received if one.sequence == 1]
        assert attempts == list(range(1, len(attempts) + 1))
        assert any("failed (attempt 1, next in" in line and "status 500" in line for line in lines)


def test_what_is_never_taken_goes_to_the_dead_letters_and_can_be_sent_again(
    registry: Registry, formats: Any, tmp_path: Path
) -> None:
    mended = threading.Event()

    def answer(request: Any, _before: int) -> tuple[int, dict[str, str]]:
        return (410 if request.sequence == 1 and not mended.is_set() else 200), {}

    with Receiver(answer) as receiver, delivering(registry, tmp_path, ci=hook(receiver.port, max_attempts=3)):
        happen(registry, formats, count=2)
        wait_until(done(registry))
        assert receiver.sequences() == [1, 1, 1, 2]
        ((letter, event),) = registry.events.dead_letters.list()
        assert (letter.consumer, letter.event_id, letter.attempts, letter.error) == ("webhook:ci", 1, 3, "status 410")
        assert event is not None
        assert event.kind == "version.registered"
        assert registry.events.trim(keep=timedelta(), dry_run=True) == 0  # it is kept, and so is the newest
        assert registry.events.dead_letters.redeliver(consumer="webhook:ci") == 1
        wait_until(lambda: receiver.sequences().count(1) == 6)  # three more attempts, and given up again
        wait_until(lambda: registry.events.dead_letters.list()[0][0].next_attempt_at is None)
        mended.set()
        assert registry.events.dead_letters.redeliver(event=1) == 1
        wait_until(lambda: registry.events.dead_letters.list() == [])
        assert receiver.sequences()[-1] == 1


def test_a_webhook_can_be_sent_everything_again(registry: Registry, formats: Any, tmp_path: Path) -> None:
    with Receiver() as receiver, delivering(registry, tmp_path, ci=hook(receiver.port)):
        happen(registry, formats, count=2)
        receiver.wait_for(2)
        wait_until(done(registry))
        registry.events.seek("webhook:ci", 0)
        receiver.wait_for(4)
        wait_until(done(registry))
        assert receiver.sequences() == [1, 2, 1, 2]


def test_many_waiting_events_of_one_model_are_read_piece_by_piece(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from noa_registry.events import delivery
    from noa_registry.events.outbox import append_event

    monkeypatch.setattr(delivery, "_QUEUED_PER_MODEL", 3)
    monkeypatch.setattr(delivery, "_PAGE", 5)
    with Receiver() as receiver, delivering(registry, tmp_path, ci=hook(receiver.port, events=["alias.*"])):
        with registry._database.write() as connection:
            for number in range(40):
                kind = "alias.promoted" if number % 5 < 3 else "version.registered"
                append_event(connection, kind, name="a" if number % 4 else "b", payload={"n": number})
        wait_until(done(registry))
        wanted = [number for number in range(40) if number % 5 < 3]
        for model, rest in (("a", (1, 2, 3)), ("b", (0,))):
            sent = [one.json["data"]["n"] for one in receiver.received if one.json["model"] == model]
            assert sent == [number for number in wanted if number % 4 in rest]


def test_a_redirect_is_not_followed(registry: Registry, formats: Any, tmp_path: Path) -> None:
    with Receiver() as elsewhere:
        target = {"Location": f"http://127.0.0.1:{elsewhere.port}/stolen"}
        with (
            Receiver(lambda _request, _before: (307, target)) as receiver,
            delivering(registry, tmp_path, ci=hook(receiver.port, max_attempts=1)),
        ):
            happen(registry, formats)
            wait_until(lambda: registry.events.dead_letters.list() != [])
        assert "redirects are not followed" in registry.events.dead_letters.list()[0][0].error
        assert elsewhere.received == []


def test_a_private_address_is_refused_unless_it_is_allowed(registry: Registry, formats: Any, tmp_path: Path) -> None:
    with Receiver() as receiver:
        settings = hook(
            receiver.port, url=f"https://localhost:{receiver.port}/noa", allow_private=False, max_attempts=1
        )
        with delivering(registry, tmp_path, ci=settings):
            happen(registry, formats)
            wait_until(lambda: registry.events.dead_letters.list() != [])
        error = registry.events.dead_letters.list()[0][0].error
        assert "`localhost` is at" in error
        assert "no public address" in error
        assert receiver.received == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("fec0::1", False),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:7f00:1::", False),
        ("2002:0a00:0001::", False),
        ("3fff::1", False),
        ("3fff:fff:ffff::1", False),
        ("192.88.99.1", False),
        ("::ffff:192.88.99.1", False),
        ("2002:c058:6301::", False),
        ("192.88.98.1", True),
        ("8.8.8.8", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("2606:4700:4700::1111", True),
    ],
)
def test_addresses_that_are_not_public_are_known_in_every_disguise(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "017700000001", "127.1", "localhost"])
def test_names_that_mean_this_machine_are_refused(host: str) -> None:
    with pytest.raises(InvalidInputError, match="no public address"):
        resolve(host, 80, allow_private=False)


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: answer)
    with pytest.raises(InvalidInputError, match=r"10\.0\.0\.1"):
        resolve("example.com", 443, allow_private=False)


def test_the_name_is_resolved_once_and_the_checked_address_is_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: a second look-up of the name would lead elsewhere."""
    asked: list[str] = []
    real = socket.getaddrinfo
    with Receiver() as receiver, Receiver() as other:

        def rebinding(host: Any, port: Any, *args: Any, **options: Any) -> Any:
            if host != "rebind.test":
                return real(host, port, *args, **options)
            asked.append(host)
            chosen = receiver.port if len(asked) == 1 else other.port
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", chosen))]

        monkeypatch.setattr(socket, "getaddrinfo", rebinding)
        answer = post(request(f"http://rebind.test:{receiver.port}/x?y=1"))
        assert (answer.status, asked) == (204, ["rebind.test"])
        assert receiver.received[0].headers["Host"] == f"rebind.test:{receiver.port}"
        assert receiver.received[0].path == "/x?y=1"
        assert other.received == []


def request(url: str, *, timeout_s: float = 5.0, ca_file: Path | None = None, allow_private: bool = True) -> Request:
    return Request(url=url, body=b"{}", headers={}, timeout_s=timeout_s, allow_private=allow_private, ca_file=ca_file)


@contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that may break the rules of HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            connection, _ = server.accept()
            with connection:
                try:
                    serve(connection)
                except OSError:
                    return  # the other side hung up

        thread = threading.Thread(target=accept)
        thread.start()
        yield server.getsockname()[1]
        thread.join(30)


def test_an_endless_answer_is_cut() -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 500 No\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    with raw_server(serve) as port:
        answer = post(request(f"http://127.0.0.1:{port}/"))
        assert (answer.status, len(answer.excerpt)) == (500, 200)


def test_an_answer_that_drips_is_cut_at_the_time_limit() -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        connection.settimeout(0.05)
        while True:
            connection.sendall(b"x")  # each byte comes in time, the whole never ends
            try:
                if connection.recv(1) == b"":
                    return
            except TimeoutError:
                continue

    with raw_server(serve) as port:
        started = time.monotonic()
        with pytest.raises(ServiceError, match=r"no answer within 0\.5 s"):
            post(request(f"http://127.0.0.1:{port}/", timeout_s=0.5))
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("reply", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000])
def test_what_is_no_http_is_a_failed_attempt(reply: bytes) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(reply)

    with raw_server(serve) as port, pytest.raises(ServiceError, match=f"127.0.0.1:{port}"):
        post(request(f"http://127.0.0.1:{port}/secret-path?token=t"))


def test_errors_hold_no_path_and_no_query() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ServiceError) as caught:
        post(request(f"http://127.0.0.1:{port}/hidden?token=hidden"))
    assert "hidden" not in str(caught.value)
    with pytest.raises(ServiceError, match="has no address"):
        post(request("https://no-such-host.invalid/hidden"))


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for `localhost` that no authority of the system has signed, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "noa test")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + built.public_bytes(Encoding.PEM))
    return path


def test_tls_is_verified_against_the_name_in_the_url(certificate: Path) -> None:
    with Receiver(certificate=certificate) as receiver:
        with pytest.raises(ServiceError, match="CERTIFICATE_VERIFY_FAILED"):
            post(request(f"https://localhost:{receiver.port}/"))
        with pytest.raises(ServiceError, match=r"127\.0\.0\.1"):
            post(request(f"https://127.0.0.1:{receiver.port}/", ca_file=certificate))
        assert receiver.received == []
        assert post(request(f"https://localhost:{receiver.port}/", ca_file=certificate)).status == 204


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with Receiver() as receiver:
        assert post(request(f"http://127.0.0.1:{receiver.port}/")).status == 204


def test_waits_double_up_to_the_limit_with_jitter_and_heed_the_receiver() -> None:
    webhook = build_webhook("ci", hook(1, retry_base_s=2.0, retry_max_s=60.0))
    assert [webhook.wait_s(attempts, chance=1.0) for attempts in (1, 2, 3, 5, 6, 99)] == [2, 4, 8, 32, 60, 60]
    assert webhook.wait_s(3, chance=0.0) == 4
    assert webhook.wait_s(1, chance=1.0, wish_s=30.0) == 30
    assert webhook.wait_s(1, chance=1.0, wish_s=10_000.0) == 60


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        (" 120 ", 120),
        ("999999999999999999", 10.0**18),
        ("9" * 5000, math.inf),
        ("Thu, 01 Jan 2026 00:01:30 GMT", 90),
        ("Thursday, 01-Jan-26 00:01:30 GMT", 90),
        ("Wed, 31 Dec 2025 23:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 251_635_075_199),
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("\u0663", None),
        ("Thu, 99 Jan 2026 00:00:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_whatever_it_asks_for_is_bounded(
    value: str | None, seconds: float | None
) -> None:
    wish = read_retry_after(value, datetime(2026, 1, 1, tzinfo=UTC))
    assert wish == seconds
    webhook = build_webhook("ci", hook(1, retry_base_s=2.0, retry_max_s=600.0))
    assert webhook.wait_s(1, chance=1.0, wish_s=wish) == min(max(seconds or 0, 2), 600)


@pytest.mark.parametrize(
    ("status", "delivered"), [(200, True), (204, True), (301, False), (400, False), (429, False), (503, False)]
)
def test_only_a_success_counts_as_delivered(status: int, delivered: bool) -> None:
    event = Event(id=1, name="digits", kind="alias.promoted", payload={}, created_at=datetime(2026, 1, 1, tzinfo=UTC))
    sent: list[Request] = []

    def send(one: Request) -> Answer:
        sent.append(one)
        return Answer(status=status, excerpt="", retry_after_s=7.0)

    webhook = Webhook(name="ci", settings=hook(1), kinds=frozenset({"alias.promoted"}), send=send)
    attempt = webhook.deliver(event, registry="r", attempt=1, timestamp=100)
    assert attempt.delivered is delivered
    assert sent[0].body == event_body(event, "r")
    assert sent[0].headers["Noa-Signature"] == sign_body(SECRET, 100, sent[0].body)


def test_an_error_that_nobody_foresaw_costs_one_attempt_and_not_the_delivery(
    registry: Registry, formats: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([RuntimeError("https://user:token@host")])

    def resolve_later(*arguments: Any, **options: Any) -> list[str]:
        for failure in failures:
            raise failure
        return resolve(*arguments, **options)

    monkeypatch.setattr("noa_registry.events.http_post.resolve", resolve_later)
    with Receiver() as receiver, delivering(registry, tmp_path, ci=hook(receiver.port)) as lines:
        happen(registry, formats)
        receiver.wait_for(1)
        wait_until(done(registry))
    assert any("unexpected RuntimeError at test_registry_webhooks.py" in line for line in lines)
    assert not any("token" in line for line in lines)


def test_a_database_that_is_away_does_not_hold_up_the_end_and_the_event_comes_again(
    registry: Registry, formats: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("the database is away")

    happen(registry, formats)
    with Receiver() as receiver:
        with monkeypatch.context() as patch, delivering(registry, tmp_path, ci=hook(receiver.port)) as lines:
            patch.setattr(Delivery, "_settle_event", refuse)
            happen(registry, formats)
            receiver.wait_for(1)
            wait_until(lambda: any("away" in line for line in lines))
        assert any("is sent again after the next start" in line for line in lines)
        with delivering(registry, tmp_path, ci=hook(receiver.port)):
            wait_until(done(registry))
        assert len({request.sequence for request in receiver.received}) == 1
        assert len(receiver.received) == 2


def test_an_unknown_kind_of_event_is_refused_by_name(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"`alias\.renamed` is no kind of event"):
        build_webhook("ci", hook(1, events=["alias.*", "alias.renamed"]))
    with pytest.raises(InvalidInputError, match="no webhook is configured"):
        registry.events.deliver({}, state_dir=tmp_path, stop=threading.Event(), tell=print)


def test_there_is_one_deliverer_per_project_and_it_shows_that_it_lives(registry: Registry, tmp_path: Path) -> None:
    with delivering(registry, tmp_path, ci=hook(1)):
        wait_until(heartbeat_file(tmp_path).exists)
        with pytest.raises(ConflictError, match="being delivered already"):
            registry.events.deliver({"ci": hook(1)}, state_dir=tmp_path, stop=threading.Event(), tell=print)


def test_a_deliverer_that_is_killed_loses_no_event_and_keeps_the_order(
    sqlite_settings: RegistrySettings, formats: Any, tmp_path: Path
) -> None:
    """kill -9 again and again while two models are told about; the receiver gets all, at least once, in order."""
    project = tmp_path / "project"
    project.mkdir()
    with Receiver() as receiver, Registry.open(sqlite_settings) as registry:
        (project / "noa.toml").write_text(
            f'[registry]\ndatabase_url = "{sqlite_settings.database_url}"\n'
            f'artifact_dir = "{sqlite_settings.artifact_dir}"\n'
            f'[webhooks.ci]\nurl = "http://127.0.0.1:{receiver.port}/"\nsecret = "{SECRET}"\nallow_private = true\n'
        )
        happen(registry, formats, "a")
        happen(registry, formats, "b")
        registry.events.seek("webhook:ci", 0)
        for turn in range(3):
            for number in range(20):
                registry.attach("a" if number % 2 else "b", 1, [formats.equivalence()])
            seen = len(receiver.received)
            command = [sys.executable, "-m", "noa_cli", "-C", str(project), "events", "deliver"]
            log = tmp_path / f"log-{turn}"
            with log.open("wb") as errors, subprocess.Popen(command, stderr=errors) as deliverer:
                try:
                    assert receiver.is_reached(seen + 3 + turn), log.read_text()
                finally:
                    deliverer.send_signal(signal.SIGKILL)
            assert SECRET.encode() not in log.read_bytes()
        with delivering(registry, tmp_path, ci=hook(receiver.port)):
            wait_until(done(registry))
        wanted = registry.events.read("test", limit=1000)
        for model in ("a", "b"):
            sent = receiver.sequences(model)
            first_times = list(dict.fromkeys(sent))
            assert first_times == [event.id for event in wanted if event.name == model]
            assert sent == sorted(sent)  # a repetition comes before anything newer of its model
            assert len(sent) - len(first_times) <= 3  # only what was under way when it was killed
