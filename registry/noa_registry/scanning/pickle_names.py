"""Names that a pickle may ask for: those that only hold data, and those that run, reach or destroy something.

The first list is an allow-list: what is not on it counts as code. The second only decides between "somebody may allow
it" and "never", so a name that is missing there is no hole.
"""

from __future__ import annotations

from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TORCH_STORAGES = _words(
    """
    BFloat16 Bool Byte Char ComplexDouble ComplexFloat Double Float Half Int Long QInt32 QInt8 QUInt2x4 QUInt4x2 QUInt8
    Short Typed Untyped
    """
)
_TORCH_VALUES = _words(
    """
    Size bfloat16 bool complex128 complex64 device float16 float32 float64 float8_e4m3fn float8_e5m2 int16 int32 int64
    int8 uint16 uint32 uint64 uint8
    """
)
DATA_NAMES: Final[dict[str, frozenset[str]]] = {
    "collections": frozenset({"OrderedDict"}),
    "builtins": frozenset({"set", "frozenset", "complex", "bytearray", "list", "dict", "tuple", "slice", "range"}),
    "__builtin__": frozenset({"set", "frozenset", "complex", "bytearray", "list", "dict", "tuple", "slice", "xrange"}),
    "_codecs": frozenset({"encode"}),
    "copy_reg": frozenset({"_reconstructor"}),
    "datetime": frozenset({"date", "datetime", "time", "timedelta", "timezone"}),
    "decimal": frozenset({"Decimal"}),
    "torch": frozenset({*(f"{name}Storage" for name in _TORCH_STORAGES), *_TORCH_VALUES}),
    "torch.storage": frozenset({"TypedStorage", "UntypedStorage"}),
    "torch._utils": frozenset({"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"}),
    "torch.serialization": frozenset({"_get_layout"}),
    "numpy": frozenset({"dtype", "ndarray"}),
    "numpy.core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy._core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy._core.numeric": frozenset({"_frombuffer"}),
    "numpy.core.numeric": frozenset({"_frombuffer"}),
    "joblib.numpy_pickle": frozenset({"NumpyArrayWrapper"}),
}
# Whole modules, with all that is in them and below them.
_HARMFUL_MODULES = _words(
    """
    IPython _imp _io _osx_support _pickle _posixsubprocess _socket _thread aiohttp antigravity asyncio bdb cProfile cgi
    cloudpickle.cloudpickle code codeop commands concurrent ctypes dill distutils doctest ensurepip faulthandler
    fileinput ftplib gc glob http httplib httpx idlelib imaplib imp importlib inspect io json.tool lib2to3 linecache
    logging.config marshal mmap multiprocessing nntplib nt ntpath numpy.distutils numpy.f2py numpy.testing os
    pandas.io.pickle pathlib pdb pickle pickletools pip pkgutil platform poplib posix posixpath profile pty py_compile
    pydoc requests resource runpy sched select setuptools shelve shutil signal site smtplib socket socketserver sqlite3
    ssl subprocess sys sysconfig tarfile telnetlib tempfile this threading timeit torch._inductor torch.distributed
    torch.hub torch.utils.bottleneck torch.utils.cpp_extension trace traceback tty turtle types urllib urllib2 urllib3
    venv webbrowser winreg xmlrpc zipapp zipfile zipimport
    """
)
_BUILTINS = _words(
    """
    __build_class__ __import__ apply breakpoint compile delattr eval exec execfile exit file filter getattr globals help
    input locals map memoryview object open print quit reduce reload setattr type vars
    """
)
_HARMFUL_NAMES: Final[dict[str, frozenset[str]]] = {
    "builtins": _BUILTINS,
    "__builtin__": _BUILTINS,
    "operator": frozenset({"attrgetter", "itemgetter", "methodcaller", "call"}),
    "_operator": frozenset({"attrgetter", "itemgetter", "methodcaller", "call"}),
    "functools": frozenset({"partial", "partialmethod", "reduce"}),
    "_functools": frozenset({"partial", "reduce"}),
    "itertools": frozenset({"starmap"}),
    "torch": frozenset({"load", "compile", "jit"}),
    "torch.serialization": frozenset({"load", "save"}),
    "torch.jit": frozenset({"load", "script"}),
    "torch.storage": frozenset({"_load_from_bytes"}),
    "numpy": frozenset({"load", "save", "fromfile", "memmap", "DataSource"}),
    "joblib": frozenset({"load", "dump"}),
    "cloudpickle": frozenset({"load", "loads"}),
    "yaml": frozenset({"load", "unsafe_load"}),
}


def is_data(module: str, name: str) -> bool:
    """Tell whether a name stands for plain data or for what puts plain data together."""
    return name in DATA_NAMES.get(module, frozenset())


def is_harmful(module: str, name: str) -> bool:
    """Tell whether a name runs programs, reaches files or the network, or leads to whatever does."""
    parts = module.split(".")
    if any(".".join(parts[:count]) in _HARMFUL_MODULES for count in range(1, len(parts) + 1)):
        return True
    first = name.split(".", 1)[0]
    if first in _HARMFUL_NAMES.get(module, frozenset()) or f"{module}.{first}" in _HARMFUL_MODULES:
        return True
    # A dotted name walks attributes: `OrderedDict.__reduce__.__globals__` leads anywhere.
    return "." in name and any(
        part.startswith("__") or part in ("func_globals", "gi_frame") for part in name.split(".")
    )
