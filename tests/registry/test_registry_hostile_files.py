"""Two hundred files that try to do harm: none runs, none is accepted, none takes memory or time."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noa_registry.scanning.blobs import Cursor, MalformedError, Slice
from noa_registry.scanning.limits import ScanLimits
from noa_registry.scanning.pickle_machine import Name, Walk, walk_pickle
from noa_registry.scanning.pickle_names import is_harmful


def load_corpus() -> ModuleType:
    path = Path(__file__).with_name("hostile_corpus.py")
    spec = importlib.util.spec_from_file_location("hostile_corpus", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


corpus = load_corpus()
_MOST_MIB = 500
_MOST_SECONDS = 30
Attempt = dict[str, Any]


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory, add_empty_database: Callable[[Path], None]) -> list[Attempt]:
    """Every file of the corpus, tried in a process of its own."""
    folder = tmp_path_factory.mktemp("hostile")
    add_empty_database(folder)
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("hostile_child.py"))]
    result = subprocess.run(
        [*command, str(folder), f"sqlite:///{folder / 'noa.db'}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_every_file_of_the_corpus_was_tried(attempts: list[Attempt]) -> None:
    assert {attempt["name"] for attempt in attempts} == corpus.HOSTILE.keys() | corpus.CODE.keys()
    assert len(corpus.HOSTILE) > 150
    assert len(corpus.CODE) > 15


def test_none_runs(attempts: list[Attempt]) -> None:
    assert [attempt["name"] for attempt in attempts if attempt["canary"]] == []


def test_what_is_hostile_is_refused_also_if_somebody_allows_it(attempts: list[Attempt]) -> None:
    hostile = [attempt for attempt in attempts if attempt["severity"] == "hostile"]
    assert {attempt["allow"] for attempt in hostile} == {"evil"}
    bad = [a for a in hostile if a["outcome"] != "refused" or "No option allows this" not in a["text"] or a["models"]]
    assert bad == []


def test_what_bears_code_is_refused_unless_the_models_very_name_is_given(attempts: list[Attempt]) -> None:
    code = [attempt for attempt in attempts if attempt["severity"] == "code"]
    assert {attempt["allow"] for attempt in code} == {None, "other"}
    assert [a for a in code if a["outcome"] != "refused" or a["models"]] == []


def test_memory_and_time_stay_bounded(attempts: list[Attempt]) -> None:
    assert [(a["name"], a["kib"] >> 10) for a in attempts if a["kib"] >> 10 >= _MOST_MIB] == []
    assert [(a["name"], a["seconds"]) for a in attempts if a["seconds"] >= _MOST_SECONDS] == []


def test_every_message_is_one_line_that_a_terminal_can_show(attempts: list[Attempt]) -> None:
    assert [attempt["name"] for attempt in attempts if not attempt["text"].isprintable()] == []


class Recorder(pickle.Unpickler):
    """Unpickles for real, but gives a harmless object for every name, and keeps the names."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.names: list[Name] = []

    def find_class(self, module: str, name: str) -> Any:
        self.names.append(Name(module, name))
        return _Harmless

    def persistent_load(self, pid: object) -> Any:
        return pid


class _Harmless:
    """Takes anything and does nothing."""

    def __init__(self, *_arguments: object) -> None: ...
    def __new__(cls, *_arguments: object) -> _Harmless:
        return super().__new__(cls)

    def __setstate__(self, _state: object) -> None: ...


def names_of(data: bytes) -> list[Name]:
    return walk_pickle(Cursor(Slice(_Bytes(data), 0, len(data))), ScanLimits(), lambda: None).names


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


@pytest.mark.parametrize("name", sorted(corpus._BY_HAND))
def test_the_machine_knows_every_name_that_unpickling_would_import(name: str) -> None:
    data = corpus._BY_HAND[name]
    recorder = Recorder(data)
    with contextlib.suppress(Exception):  # what the real one makes of a broken pickle does not matter
        recorder.load()
    walk = Walk()
    try:
        walk_pickle(Cursor(_Bytes(data)), ScanLimits(), lambda: None, into=walk)
    except MalformedError:
        return  # refused
    assert recorder.names == walk.names[: len(recorder.names)]


@pytest.mark.parametrize("protocol", range(6))
def test_the_machine_agrees_with_unpickling_on_real_objects(protocol: int) -> None:
    values = [
        {"a": [1, 2.5, None, True, (1, 2), {3, 4}], "b": b"bytes" * 500, "c": "text" * 500, 10**40: -(2**70)},
        np.arange(12.0).reshape(3, 4),
        [np.float32(1), np.dtype([("a", "f4"), ("b", "U3")]), datetime(2026, 1, 1, tzinfo=UTC)],
        [slice(1, 2), range(3), complex(1, 2), frozenset("ab"), bytearray(b"x")],
        [["deep"] * 3] * 1000,
    ]
    for value in values:
        data = pickle.dumps(value, protocol=protocol)
        recorder = Recorder(data)
        recorder.load()
        assert names_of(data) == recorder.names


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5) | st.tuples(inner)
    ),
    max_leaves=30,
)


@given(value=_PLAIN, protocol=st.integers(0, 5))
def test_plain_data_imports_nothing(value: object, protocol: int) -> None:
    data = pickle.dumps(value, protocol=protocol)
    names = {name for name in names_of(data) if name != Name("_codecs", "encode")}  # how old protocols keep bytes
    assert names == set() or protocol < 3


@given(data=st.binary(max_size=300), at=st.integers(0, 400))
def test_any_bytes_end_in_a_verdict(data: bytes, at: int) -> None:
    """Whatever the bytes, the machine stops by itself and finds at least the names that unpickling would import."""
    start = pickle.dumps({"a": datetime(2026, 1, 1, tzinfo=UTC), "b": np.arange(3)})
    mixed = start[:at] + data
    walk = Walk()
    try:
        walk_pickle(Cursor(_Bytes(mixed)), ScanLimits(), lambda: None, into=walk)
    except MalformedError:
        return
    recorder = Recorder(mixed)
    with contextlib.suppress(Exception):  # it may refuse what the machine follows; it may not import more
        recorder.load()
    assert recorder.names == walk.names[: len(recorder.names)]


@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("posix", "system"), ("subprocess", "Popen"), ("builtins", "eval"), ("__builtin__", "exec"),
     ("os.path", "join"), ("torch.hub", "load"), ("collections", "OrderedDict.__reduce__"), ("builtins", "getattr"),
     ("importlib._bootstrap", "_load"), ("numpy", "load"), ("operator", "attrgetter"), ("builtins", "eval.__call__")],
)  # fmt: skip
def test_names_that_lead_to_harm_are_known(module: str, name: str) -> None:
    assert is_harmful(module, name)


def _builder(name: str) -> Callable[[Path, Path], Path]:
    return corpus.HOSTILE.get(name) or corpus.CODE[name]


def test_the_corpus_can_do_harm_where_nobody_looks(tmp_path: Path) -> None:
    """The canary is real: unpickled without noa, such a file runs."""
    canary = tmp_path / "canary"
    path = _builder("pickle protocol 4")(tmp_path, canary)
    code = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=30)
    assert canary.exists()


def _joblib_file(shape: bytes, dtype: bytes, make: bytes = b")\x81", hidden: bytes = b"N") -> bytes:
    """A pickle by hand that says that an array of `dtype` follows, with `hidden` as its numbers."""
    wrapper = b"\x80\x04Vjoblib.numpy_pickle\nVNumpyArrayWrapper\n\x93" + make
    state = b"}(Vshape\n" + shape + b"Vdtype\n" + dtype + b"Vnumpy_array_alignment_bytes\nNu"
    return wrapper + state + b"b" + hidden + b"."


_STATE = b"(K\x03V<\nNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
_F8 = b"Vnumpy\nVdtype\n\x93Vf8\n\x85R"


@pytest.mark.parametrize(
    "data",
    [
        _joblib_file(b"K\x01\x85", _F8),  # no state, so nobody knows whether it holds objects
        _joblib_file(b"K\x01\x85", _F8 + _STATE + b"K?tb"),  # a pickle follows
        _joblib_file(b"K\x01\x85", _F8.replace(b"Vf8", b"VS8") + b"(K\x03V|\nNNNK\x01K\x01K\x00tb"),  # two lengths
        _joblib_file(b"J\xff\xff\xff\x7f\x85", _F8 + _STATE + b"K\x00tb"),  # too long
        _joblib_file(b"K\x01\x85", _F8, make=b")R"),  # called instead of made
        b"\x80\x04Vcopyreg\nV_reconstructor\n\x93(Vjoblib.numpy_pickle\nVNumpyArrayWrapper\n\x93Vx\nNtR.",
        b"\x80\x04Vjoblib\nVnumpy_pickle.NumpyArrayWrapper\n\x93.",
        b"\x80\x04Vjoblib.numpy_pickle_compat\nVNDArrayWrapper\n\x93.",
    ],
    ids=range(8),
)
def test_a_joblib_array_that_is_not_what_it_says_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        names_of(data)


def test_a_joblib_array_that_is_what_it_says_is_skipped() -> None:
    data = _joblib_file(b"K\x01\x85", _F8 + _STATE + b"K\x00tb", hidden=bytes(8))
    assert [str(name) for name in names_of(data)] == ["joblib.numpy_pickle.NumpyArrayWrapper", "numpy.dtype"]
