"""How much a scan may read, unpack and remember. A file that needs more is refused, before the memory is taken."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanLimits:
    """The bounds of one scan. Memory stays far below 500 MB with the defaults, whatever the files hold."""

    seconds: float = 300.0
    """Time for the whole scan."""
    files: int = 20_000
    """Most files and entries of archives, all together."""
    folders_deep: int = 32
    archives_deep: int = 4
    """How deep archives may lie in archives."""
    unpacked_bytes: int = 2 << 30
    """Most bytes unpacked from compressed entries, all together; they go to a temporary file, never to a name."""
    ratio: int = 200
    """Most bytes that one compressed byte may become, once an entry is larger than `ratio_from_bytes`."""
    ratio_from_bytes: int = 16 << 20
    directory_bytes: int = 4 << 20
    """Largest list of entries in a zip file."""
    opcodes: int = 20_000_000
    """Most instructions of one pickle."""
    stack: int = 2_000_000
    """Most objects that one pickle may hold on its stack."""
    memo: int = 500_000
    """Most names and numbers that one pickle may remember."""
    header_bytes: int = 8 << 20
    """Largest header of a safetensors file."""
    text_bytes: int = 1 << 20
    """Largest YAML or JSON text that is parsed."""
    tensors: int = 1_000_000
    """Most tensors and nodes of one ONNX graph or safetensors file."""
