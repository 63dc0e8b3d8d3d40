"""A PyTorch program is compared with the signature when it is registered: from its JSON alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from signature_kit import WRONGS, refuse_at_registration, wrong

from noa.errors import InvalidInputError
from noa.formats import SignatureChecker, find_adapter
from noa.signatures import Signature

NO_TORCH = """
import sys
from pathlib import Path
from noa.formats import find_adapter
from noa.signatures import Signature
folder = Path(sys.argv[1])
find_adapter("torch").check_signature(folder, Signature.load(folder))
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("model", ["image", "rows"])
@pytest.mark.parametrize("what", WRONGS)
def test_a_program_that_is_not_of_its_signature_is_refused_at_registration(
    model: str, what: str, zoo: Any, tmp_path: Path, empty_sqlite_file: Path
) -> None:
    folder = zoo.copy(zoo.folder("torch", model, "torch"), tmp_path / "torch")
    adapter = find_adapter("torch")
    assert isinstance(adapter, SignatureChecker)
    adapter.check_signature(folder, Signature.load(folder))
    wrong(Signature.load(folder), what).save(folder)
    refuse_at_registration(folder, "torch", match=r"program\.pt2", root=tmp_path, empty=empty_sqlite_file)


def test_what_is_no_archive_is_refused_and_looking_imports_no_torch(zoo: Any, tmp_path: Path) -> None:
    folder = zoo.copy(zoo.folder("torch", "rows", "torch"), tmp_path / "torch")
    subprocess.run([sys.executable, "-c", NO_TORCH, str(folder)], check=True, timeout=120)
    (folder / "program.pt2").write_bytes(b"no archive")
    adapter = find_adapter("torch")
    assert isinstance(adapter, SignatureChecker)
    with pytest.raises(InvalidInputError, match=r"program\.pt2"):
        adapter.check_signature(folder, Signature.load(folder))
