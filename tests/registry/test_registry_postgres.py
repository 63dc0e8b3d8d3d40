"""PostgreSQL goes away, refuses and comes back: what a registry does then."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pytest
from sqlalchemy import event, text
from sqlalchemy.engine import make_url

from noa.errors import DependencyMissingError, InvalidInputError, StorageError
from noa.settings import RegistrySettings
from noa_registry import Registry
from noa_registry.database import Database
from postgres_server import PASSWORD, PostgresServer

REGISTER = ("INSERT INTO noa_versions", "INSERT INTO noa_formats", "INSERT INTO model_versions", "COMMIT")
PROMOTE = ("INSERT INTO noa_ledger", "INSERT INTO noa_aliases", "INSERT INTO registered_model_aliases", "COMMIT")


@pytest.fixture(scope="module")
def own_postgres_server() -> Iterator[PostgresServer]:
    """A server that these tests may stop; each leaves it running."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def template(own_postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a complete, empty database on that server."""
    name = own_postgres_server.create_database()
    url, folder = own_postgres_server.url(name), tmp_path_factory.mktemp("template")
    Registry.open(RegistrySettings(database_url=url, artifact_dir=folder)).close()
    return name


@pytest.fixture
def postgres_settings(
    own_postgres_server: PostgresServer, template: str, artifact_dir: Path
) -> Iterator[RegistrySettings]:
    """Settings of an initialised, empty registry on that server."""
    name = own_postgres_server.create_database(template=template)
    url = own_postgres_server.url(name)
    yield RegistrySettings(database_url=url, artifact_dir=artifact_dir, lock_timeout_s=20.0)
    own_postgres_server.drop_database(name)


def units(settings: RegistrySettings) -> set[str]:
    found = settings.artifact_dir.glob("digits/*")
    return {path.name for path in found}


def engine_of(registry: Registry) -> Any:
    return registry._database.engine  # pyright: ignore[reportPrivateUsage]  # no public way to the connections


class At:
    """Does something once, right before the first statement that begins with `statement` (or before a commit)."""

    def __init__(self, registry: Registry, statement: str, action: Callable[[], object]) -> None:
        self.happened = False
        self._statement, self._action = statement, action
        if statement == "COMMIT":
            event.listen(engine_of(registry), "commit", lambda _connection: self._act())
        else:
            event.listen(engine_of(registry), "before_cursor_execute", self._look)

    def _look(self, _connection: object, _cursor: object, statement: str, *_more: object) -> None:
        if statement.startswith(self._statement):
            self._act()

    def _act(self) -> None:
        if not self.happened:
            self.happened = True
            self._action()


@pytest.mark.parametrize("statement", REGISTER)
def test_a_restart_in_the_middle_of_a_registration_leaves_nothing_and_a_retry_works(
    postgres_settings: RegistrySettings, own_postgres_server: PostgresServer, formats: Any, statement: str
) -> None:
    with Registry.open(postgres_settings) as registry:
        crash = At(registry, statement, own_postgres_server.restart)
        with pytest.raises(StorageError, match="connection to the database was lost") as caught:
            registry.register(formats.draft(), actor="ada")
        assert crash.happened
        assert "nothing was lost" in str(caught.value.remedy)
        assert registry.models() == []
        assert units(postgres_settings) == set()
        made = registry.register(formats.draft(), actor="ada")
        assert made.number == 1
        registry.verify("digits", 1)
        assert units(postgres_settings) == {made.folder.name}
        registry.verify_ledger()


@pytest.mark.parametrize("statement", PROMOTE)
def test_a_restart_in_the_middle_of_a_promotion_moves_nothing_and_a_retry_works(
    postgres_settings: RegistrySettings, own_postgres_server: PostgresServer, formats: Any, statement: str
) -> None:
    with Registry.open(postgres_settings) as registry:
        for _ in range(2):
            registry.register(formats.draft(), actor="ada")
        registry.promote("digits", 1, alias="stable", reason="r", actor="ada")
        crash = At(registry, statement, own_postgres_server.restart)
        with pytest.raises(StorageError, match="connection to the database was lost"):
            registry.promote("digits", 2, reason="r", actor="ada")
        assert crash.happened
        assert registry.resolve("digits@stable").number == 1
        assert [entry.alias for entry in registry.history("digits")] == ["stable"]
        assert registry.mirror_discrepancies() == []
        registry.verify_ledger()
        assert registry.promote("digits", 2, reason="r", actor="ada", expect=None).sequence == 2
        assert registry.resolve("digits@champion").number == 2
        registry.verify_ledger()


def test_files_are_kept_while_nobody_can_say_whether_they_are_needed(
    postgres_settings: RegistrySettings, own_postgres_server: PostgresServer, formats: Any
) -> None:
    """The server stays away when the rest of a failed registration would be removed: it is removed later."""
    with Registry.open(postgres_settings) as registry:
        At(registry, "INSERT INTO noa_formats", lambda: own_postgres_server.stop("immediate"))
        with pytest.raises(StorageError):
            registry.register(formats.draft(), actor="ada")
        with pytest.raises(StorageError, match=r"cannot be reached|was lost"):
            registry.models()
        own_postgres_server.start()
        made = registry.register(formats.draft(), actor="ada")
        assert (made.number, units(postgres_settings)) == (1, {made.folder.name})


def test_a_pooled_connection_that_the_server_closed_is_replaced_unnoticed(
    postgres_settings: RegistrySettings, own_postgres_server: PostgresServer, formats: Any
) -> None:
    with Registry.open(postgres_settings) as registry:
        registry.register(formats.draft(), actor="ada")
        for mode in ("fast", "immediate"):
            own_postgres_server.restart(mode)
            assert registry.resolve("digits").number == 1
            own_postgres_server.restart(mode)
            registry.promote("digits", 1, reason="r", actor="ada")


class Proxy:
    """Stands between client and server, and breaks the line at a commit: before the server hears it, or after."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.cut: Literal["before", "after"] | None = None
        self.cuts = 0
        self.is_down = self.is_down_after_cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.is_down:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._target))
                ends = _Line(client, server)
                threading.Thread(target=self._send, args=(ends,), daemon=True).start()
                threading.Thread(target=self._answer, args=(ends,), daemon=True).start()

    def _send(self, line: _Line) -> None:
        with suppress(OSError):
            while data := line.client.recv(1 << 16):
                if self.cut is not None and b"COMMIT\0" in data:
                    cut, self.cut = self.cut, None
                    self.cuts += 1
                    line.is_mute = True
                    if cut == "after":
                        line.server.sendall(data)
                        assert line.heard.wait(10)
                    self.is_down = self.is_down_after_cut
                    break
                line.server.sendall(data)
        line.close()

    def _answer(self, line: _Line) -> None:
        with suppress(OSError):
            while data := line.server.recv(1 << 16):
                if line.is_mute:
                    line.heard.set()
                    return
                line.client.sendall(data)
        line.close()


class _Line:
    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.is_mute = False
        self.heard = threading.Event()

    def close(self) -> None:
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def proxy(postgres_settings: RegistrySettings, own_postgres_server: PostgresServer) -> Iterator[Proxy]:
    made = Proxy(own_postgres_server.port)
    yield made
    made.close()


@pytest.fixture
def through_proxy(postgres_settings: RegistrySettings, proxy: Proxy) -> RegistrySettings:
    url = make_url(postgres_settings.database_url).set(port=proxy.port).render_as_string(hide_password=False)
    return postgres_settings.model_copy(update={"database_url": url})


def test_a_commit_whose_answer_is_lost_counts_when_the_server_did_it(
    through_proxy: RegistrySettings, proxy: Proxy, formats: Any
) -> None:
    with Registry.open(through_proxy) as registry:
        proxy.cut = "after"
        made = registry.register(formats.draft(), actor="ada")
        assert (proxy.cuts, made.number) == (1, 1)
        registry.verify("digits", 1)
        proxy.cut = "after"
        entry = registry.promote("digits", 1, reason="r", actor="ada")
        assert (proxy.cuts, entry.sequence) == (2, 1)
        registry.verify_ledger()


def test_a_commit_that_the_server_never_heard_is_undone_and_a_retry_works(
    through_proxy: RegistrySettings, proxy: Proxy, formats: Any
) -> None:
    with Registry.open(through_proxy) as registry:
        proxy.cut = "before"
        with pytest.raises(StorageError, match="was lost"):
            registry.register(formats.draft(), actor="ada")
        assert (proxy.cuts, registry.models(), units(through_proxy)) == (1, [], set())
        assert registry.register(formats.draft(), actor="ada").number == 1
        proxy.cut = "before"
        with pytest.raises(StorageError, match="was lost"):
            registry.promote("digits", 1, reason="r", actor="ada")
        assert registry.history("digits") == []
        registry.promote("digits", 1, reason="r", actor="ada")
        registry.verify_ledger()


def test_an_outcome_that_nobody_can_tell_is_called_unknown_and_the_files_are_kept(
    through_proxy: RegistrySettings, proxy: Proxy, formats: Any
) -> None:
    hasty = through_proxy.model_copy(update={"lock_timeout_s": 0.5})
    with Registry.open(hasty) as registry:
        registry.register(formats.draft(), actor="ada")
        proxy.cut, proxy.is_down_after_cut = "after", True
        with pytest.raises(StorageError, match="unknown") as caught:
            registry.register(formats.draft(), actor="ada")
        assert "look before you repeat" in str(caught.value.remedy)
        proxy.is_down = False
        assert registry.resolve("digits").number == 2
        registry.verify("digits", 2)
    with Registry.open(hasty) as registry:
        registry.verify("digits", 2)


def test_a_live_version_cannot_be_deleted_by_mlflow_in_the_instant_of_its_promotion(
    postgres_settings: RegistrySettings, own_postgres_server: PostgresServer, formats: Any
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    url = postgres_settings.database_url.replace("postgresql:", "postgresql+psycopg:")
    client = MlflowClient(url, url)
    refused: list[MlflowException] = []

    def delete() -> None:
        try:
            client.delete_model_version("digits", "1")
        except MlflowException as error:
            refused.append(error)

    deleter = threading.Thread(target=delete)

    def start_and_wait() -> None:
        deleter.start()
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        deadline = time.monotonic() + 30
        while own_postgres_server.execute(waiting) != [(1,)]:
            assert time.monotonic() < deadline, "MLflow does not wait for its turn"

    with Registry.open(postgres_settings) as registry:
        registry.register(formats.draft(), actor="ada")
        client.get_registered_model("digits")
        At(registry, "COMMIT", lambda: None)
        promotion = At(registry, "INSERT INTO noa_aliases", start_and_wait)
        registry.promote("digits", 1, reason="r", actor="ada")
        deleter.join(30)
        assert promotion.happened
        assert len(refused) == 1
        assert registry.mirror_discrepancies() == []


@pytest.mark.parametrize(
    ("code", "words", "remedy"),
    [
        ("53100", "refused", "Free some space"),
        ("53200", "refused", "out of memory"),
        ("25006", "refused", "takes no writes"),
        ("42501", "refused", "Grant"),
        ("40001", "refused", "Another program"),
        ("40P01", "refused", "Another program"),
        ("55P03", "locked by another writer", "lock_timeout_s"),
        ("57014", "refused", "statement_timeout"),
        ("58030", "refused", "log"),
        ("XX001", "refused", "backup"),
        ("23505", "refused", None),
        ("P0001", "refused", None),
    ],
)
def test_what_the_server_refuses_is_a_storage_error_with_a_remedy(
    postgres_database: Database, code: str, words: str, remedy: str | None
) -> None:
    with pytest.raises(StorageError, match=words) as caught, postgres_database.write_schema() as connection:
        connection.execute(text(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{code}', MESSAGE = 'it says'; END $$"))
    assert (caught.value.remedy is None) == (remedy is None)
    assert remedy is None or remedy in str(caught.value.remedy)
    assert code == "55P03" or "it says" in str(caught.value)
    assert PASSWORD not in str(caught.value)
    with postgres_database.write_schema() as connection:
        connection.execute(text("SELECT 1"))


@pytest.fixture
def postgres_database(postgres_server: PostgresServer) -> Iterator[Database]:
    name = postgres_server.create_database()
    opened = Database(postgres_server.url(name), lock_timeout_s=5)
    yield opened
    opened.close()
    postgres_server.drop_database(name)


def test_a_value_that_is_too_long_is_an_input_error(postgres_database: Database) -> None:
    with pytest.raises(InvalidInputError, match="cannot hold"), postgres_database.write_schema() as connection:
        connection.execute(text("CREATE TABLE t (c varchar(2))"))
        connection.execute(text("INSERT INTO t VALUES ('abc')"))


@pytest.mark.parametrize(
    ("change", "words", "remedy"),
    [
        ({"password": "wrong"}, "password authentication failed", "user and password"),
        ({"database": "nowhere"}, "does not exist", "createdb"),
        ({"host": "127.0.0.1", "port": 1}, "cannot be reached", "Check that PostgreSQL runs"),
    ],
)
def test_a_server_that_lets_nobody_in_is_a_storage_error_without_the_password(
    postgres_server: PostgresServer, tmp_path: Path, change: dict[str, Any], words: str, remedy: str
) -> None:
    url = make_url(postgres_server.url("postgres")).set(**change).render_as_string(hide_password=False)
    with pytest.raises(StorageError, match=words) as caught:
        Registry.open(RegistrySettings(database_url=url, artifact_dir=tmp_path / "a", lock_timeout_s=1))
    assert remedy in str(caught.value.remedy)
    error: BaseException | None = caught.value
    while error is not None:
        assert PASSWORD not in str(error)
        assert "s3cret" not in str(error)
        error = error.__cause__


def test_a_connection_is_waited_for_while_others_hold_them_all(postgres_server: PostgresServer) -> None:
    name = postgres_server.create_database()
    postgres_server.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x' CONNECTION LIMIT 1")
    url = make_url(postgres_server.url(name)).set(username=name, password="x").render_as_string(hide_password=False)
    first, second = (Database(url, lock_timeout_s=20) for _ in range(2))
    impatient = Database(url, lock_timeout_s=0.1)
    with first.read() as connection:
        connection.execute(text("SELECT 1"))
        with pytest.raises(StorageError, match="too many connections") as caught, impatient.read():
            pass
        assert "max_connections" in str(caught.value.remedy)
        answers: list[Any] = []

        def ask() -> None:
            with second.read() as waited:
                answers.append(waited.execute(text("SELECT 1")).scalar())

        asking = threading.Thread(target=ask)
        asking.start()
        connection.invalidate()  # closes it, which lets the second in
    asking.join(20)
    assert answers == [1]
    for database in (first, second, impatient):
        database.close()
    postgres_server.drop_database(name)


def test_a_user_without_rights_is_told_so(postgres_server: PostgresServer, tmp_path: Path) -> None:
    name = postgres_server.create_database()
    postgres_server.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    url = make_url(postgres_server.url(name)).set(username=name, password="x").render_as_string(hide_password=False)
    with pytest.raises(StorageError, match="permission denied") as caught:
        Registry.open(RegistrySettings(database_url=url, artifact_dir=tmp_path / "a"))
    assert "Grant" in str(caught.value.remedy)
    postgres_server.drop_database(name)


def test_a_missing_driver_is_named_with_the_command_that_installs_it() -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None; from noa_registry.database import Database; "
        "Database('postgresql://h/db', lock_timeout_s=1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert DependencyMissingError.__name__ in done.stderr
    assert 'pip install "noa[postgres]"' in done.stderr


def test_sqlite_needs_no_driver_of_postgresql() -> None:
    code = (
        "import sys; from noa_registry.database import Database; Database('sqlite:////tmp/never.db', lock_timeout_s=1);"
        "sys.exit('psycopg' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
