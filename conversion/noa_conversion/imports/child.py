"""A process of its own for what touches the model with a framework: bounded in memory and time, and killed with us.

    python -m noa_conversion.imports.child    request as JSON on standard input, answer as JSON on standard output

Preparing and trying a graph runs no code of the file, but a graph may still ask for endless work or memory. Here that
ends with the child. An answer is either the signature or an error of noa's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from noa.errors import InvalidInputError
from noa.settings import ConversionSettings
from noa.signatures import Signature
from noa_conversion.child_process import answer, ask
from noa_conversion.imports.kept_signature import Prepared, kept_signature

EXAMPLE_FILE: Final = "example.safetensors"
_ENVIRONMENT: Final = {"OMP_NUM_THREADS": "2", "MLFLOW_DISABLE_TELEMETRY": "true"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildLimits:
    """What the child may use."""

    seconds: float = float(ConversionSettings.model_fields["max_work_s"].default)
    """`conversion.max_work_s`."""
    memory_bytes: int = 12 << 30
    """Address space: PyTorch alone reserves several GiB of it without using them."""


def run_child(request: Mapping[str, object], limits: ChildLimits) -> Signature:
    """Prepare a format in a child process and return its signature; the child writes folder and example.

    Raises:
        InvalidInputError, ConversionError: as `onnx_import.prepare` and `torch_import.prepare`; or the child used up
            its time or memory, or died.
    """
    found = ask(
        "noa_conversion.imports.child",
        request,
        seconds=limits.seconds,
        memory_bytes=limits.memory_bytes,
        failure=InvalidInputError,
        what="the model could not be prepared",
        remedy="It may ask for endless work; if it needs longer, raise `conversion.max_work_s`",
        environment=_ENVIRONMENT,
    )
    return Signature.from_dict(found["signature"])


def prepare(request: Mapping[str, Any]) -> Signature:
    """Do what a request says, in this process."""
    source, folder = Path(request["source"]), Path(request["folder"])
    if request["kind"] == "onnx":
        from noa_conversion.formats.onnx_format import require_onnx

        require_onnx("importing an ONNX model")  # deeper down it is an `ImportError` that names no extra
        from noa_conversion.imports.onnx_import import prepare as prepare_onnx

        prepared = prepare_onnx(source, folder)
    else:
        from noa_conversion.imports.torch_import import prepare as prepare_torch

        prepared = Prepared(signature=prepare_torch(source, folder))
    return _try_out(request, prepared, folder)


def _try_out(request: Mapping[str, Any], prepared: Prepared, folder: Path) -> Signature:
    """Run the prepared format, keep the inputs it ran on, and return the signature that it keeps."""
    from noa.formats import find_adapter
    from noa.tensor_files import save_tensors
    from noa_conversion.imports.examples import make_example, read_example

    given = request.get("example")
    signature = prepared.signature
    example = read_example(Path(given), signature) if given else make_example(signature)
    model = find_adapter(str(request["kind"])).load(folder)
    try:
        outputs = model.run(example)
    except InvalidInputError as exc:
        if given:
            raise
        raise InvalidInputError(
            f"the model cannot compute made-up inputs: {exc.what}",
            remedy="Give real ones with --example FILE (.npz, .safetensors or .json)",
        ) from exc
    kept = kept_signature(model, prepared, example, outputs)
    kept.save(folder)
    save_tensors(example, Path(request["example_target"]))
    return kept


def _answered(request: dict[str, Any]) -> dict[str, object]:
    return {"signature": prepare(request).to_dict()}


if __name__ == "__main__":
    too_large = "the model needs more memory than an import may take"
    sys.exit(answer(_answered, failure=InvalidInputError, too_large=too_large))
