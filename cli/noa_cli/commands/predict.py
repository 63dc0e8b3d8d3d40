"""`noa predict`: ask a running endpoint, or compute with a version right here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from noa_cli import _console as console
from noa_cli._invocation import current
from noa_cli._options import JsonOption

if TYPE_CHECKING:
    import ssl

    import numpy as np

    from noa.references import ModelReference
    from noa.settings import Settings
    from noa.signatures import TensorSpec
    from noa_serving import NoAnswerError

_MOST_INPUT_BYTES = 1 << 30
_IMAGES = (".png", ".jpg", ".jpeg")


def predict(
    what: Annotated[str, typer.Argument(help="An endpoint by name, or a version: `name@alias`, `name/number`.")],
    source: Annotated[
        str,
        typer.Option(
            "--input", "-i", help="A file .json, .npy, .npz, .png or .jpg, or `-` for JSON on standard input."
        ),
    ],
    url: Annotated[str | None, typer.Option("--url", help="The server (default: this project's, if it runs).")] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="Compute a version in this format (default: onnx).")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Have an endpoint with streams compute step by step; a line for each.")
    ] = False,
    max_steps: Annotated[
        int | None, typer.Option("--max-steps", min=1, help="Steps of a stream (default: as many as it has).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict. An endpoint is asked over HTTP; a version is verified, loaded and computed in this process.

    With --stream an endpoint that has streams is called step by step, and each step is a line as it comes (with --json
    a line of JSON).

    JSON input is `{"name": [...], ...}`, or just the values for a model with one input, always with a batch axis. An
    image is brought to the size of a model with one image as its input.
    """
    from noa.references import parse_reference

    reference = parse_reference(what)
    is_version = reference.alias is not None or reference.number is not None
    if stream or max_steps is not None:
        _refuse_without_server(what, is_version=is_version and url is None, stream=stream)
        _ask_stream(reference.name, source, url=url, max_steps=max_steps, as_json=as_json)
        return
    if is_version and url is None:
        answer = _compute(what, source, format)
    else:
        answer = _ask(reference, source, url=url, format=format)
    if as_json or not sys.stdout.isatty():
        console.print_json(answer)
        return
    outputs = cast("dict[str, object]", answer["outputs"])
    for name, values in outputs.items():
        console.print_line(f"{name}: {json.dumps(values)}")
        for index, (best, share) in enumerate(_classes(name, values)):
            console.print_line(f"  item {index}: class {best}, probability {share:.3f}", "bold")
    console.print_line(
        f"computed by {answer['model']}/{answer['version']} ({console.short_digest(str(answer['digest']))})", "dim"
    )


def _compute(what: str, source: str, format: str | None) -> dict[str, object]:
    from noa.formats import find_adapter, refuse_kept
    from noa_cli._registry import open_registry

    with open_registry(about=[what]) as registry:
        version = registry.resolve(what)
        chosen = version.sealed(format or version.default_format).name
        refuse_kept(chosen, reference=version.reference)
        inputs = read_inputs(source, version.signature.inputs)
        version.signature.validate(inputs)
        runnable = find_adapter(chosen).load(registry.open_format(version, chosen))
    outputs = runnable.run(inputs)
    return {
        "outputs": {name: _plain(array) for name, array in outputs.items()},
        "model": version.name,
        "version": version.number,
        "digest": version.digest,
        "format": chosen,
    }


def _ask(reference: ModelReference, source: str, *, url: str | None, format: str | None) -> dict[str, object]:
    from noa_serving import Client, NoAnswerError

    settings = current().load().settings
    endpoint = reference.name
    _check_source(source)
    address = url or find_server(settings, endpoint)
    with Client(address, api_key=key_for(settings, url, address), tls=tls_for(settings, url)) as client:
        try:
            answer = client.predict(endpoint, read_inputs(source, client.inputs(endpoint)))
        except NoAnswerError as exc:
            here = _compute_here(reference, source, settings, format=format)
            exc.remedy = f"{remedy_without_answer(exc, url)}, or compute here: {here}"
            raise
    return {
        "outputs": {name: _plain(array) for name, array in answer.outputs.items()},
        "model": answer.model,
        "version": answer.version,
        "digest": answer.digest,
    }


def _refuse_without_server(what: str, *, is_version: bool, stream: bool) -> None:
    from noa.errors import InvalidInputError

    if not stream:
        raise InvalidInputError("`--max-steps` is for streams", remedy="Add `--stream`")
    if is_version:
        raise InvalidInputError(
            "streams are run by a server",
            expected="the name of an endpoint",
            received=what,
            remedy="Name an endpoint with `[endpoints.NAME.stream]`, or leave out `--stream`",
        )


def _ask_stream(endpoint: str, source: str, *, url: str | None, max_steps: int | None, as_json: bool) -> None:
    from noa_cli._predict_stream import print_steps
    from noa_serving import Client, NoAnswerError

    settings = current().load().settings
    _check_source(source)
    address = url or find_server(settings, endpoint)
    with Client(address, api_key=key_for(settings, url, address), tls=tls_for(settings, url)) as client:
        try:
            inputs = read_inputs(source, client.inputs(endpoint))
            print_steps(client.stream(endpoint, inputs, max_steps=max_steps), _plain, as_json=as_json)
        except NoAnswerError as exc:
            exc.remedy = remedy_without_answer(exc, url)
            raise


def _compute_here(reference: ModelReference, source: str, settings: Settings, *, format: str | None) -> str:
    """Return the command that computes here what the endpoint would answer."""
    call = current()
    rule = settings.endpoints.get(reference.name)
    is_version = reference.alias is not None or reference.number is not None
    model = str(reference) if is_version else f"{reference.name}@champion" if rule is None else rule.model
    ruled = rule.format if rule is not None and not is_version else "onnx"
    chosen = format or ("onnx" if ruled == "auto" else ruled)
    options = [*([] if chosen == "onnx" else ["--format", chosen]), *(["--json"] if call.as_json else [])]
    return call.command_line("predict", model, "--input", source, *options)


def remedy_without_answer(error: NoAnswerError, url: str | None) -> str:
    """Return what to do about a server that does not answer, with commands that work as they stand."""
    call = current()
    if not error.facts["is_refused"]:
        return str(error.remedy)
    return "Check `--url`" if url else f"Start one with `{call.command_line('serve')}` or `{call.command_line('up')}`"


def find_server(settings: Settings, endpoint: str) -> str:
    """Return the address of the project's server: that of `noa up`, else of a `noa serve`, else the configured one."""
    from noa_flows import address_of
    from noa_serving import running_servers

    known = address_of(settings, "serving") if settings.state_dir.exists() else None
    if known is None:
        serving = [one for one in running_servers(settings.state_dir) if endpoint in one.settings.endpoints]
        known = serving[-1].address.url if serving else None
    return known or settings.serving.address


def key_for(settings: Settings, url: str | None, address: str) -> str | None:
    """Return the key to call the server at `url` with, or at `address`, the project's own, where there is no `url`."""
    from noa_serving import key_to_call_own

    return key_to_call_own(settings, address) if url is None else settings.serving.key_to_call_with()


def tls_for(settings: Settings, url: str | None) -> ssl.SSLContext | None:
    """Return how the server at `url` is checked over TLS, or the project's own where there is no `url`."""
    from noa_serving import client_context, own_server_context

    return own_server_context(settings.serving) if url is None else client_context(settings.serving)


def read_inputs(source: str, specs: tuple[TensorSpec, ...]) -> dict[str, np.ndarray]:
    """Read named tensors from a file or standard input, in the dtypes of the signature.

    Raises:
        NotFoundError: no such file.
        InvalidInputError: it is not readable, or a value does not fit its tensor's dtype.
    """
    from noa.errors import InvalidInputError

    suffix = _check_source(source)
    if suffix == ".json":
        try:
            text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
        except UnicodeDecodeError as exc:
            raise InvalidInputError("the input is not UTF-8 text", where=source) from exc
        return _from_json(text, source, specs)
    if suffix in _IMAGES:
        from noa_cli._image_input import read_image

        return read_image(Path(source), specs)
    return _from_numpy(Path(source), specs)


def _check_source(source: str) -> str:
    """Return the kind of the input by its suffix, `.json` for standard input."""
    from noa.errors import InvalidInputError, NotFoundError

    if source == "-":
        return ".json"
    path = Path(source)
    if not path.is_file():
        raise NotFoundError("no such input file", where=source)
    size = path.stat().st_size
    if size > _MOST_INPUT_BYTES:
        raise InvalidInputError(
            "the input file is too large", where=source, expected=f"at most {_MOST_INPUT_BYTES} bytes", received=size
        )
    if path.suffix.lower() not in (".json", ".npy", ".npz", *_IMAGES):
        raise InvalidInputError(
            "the input's kind is not known",
            where=source,
            expected=".json, .npy, .npz, .png, .jpg or -",
            received=path.suffix,
        )
    return path.suffix.lower()


def _from_json(text: str, source: str, specs: tuple[TensorSpec, ...]) -> dict[str, np.ndarray]:
    import numpy as np

    from noa.errors import InvalidInputError

    try:
        value = cast("object", json.loads(text))
    except ValueError as exc:
        raise InvalidInputError(f"malformed JSON: {exc}", where=source) from exc
    except RecursionError as exc:
        raise InvalidInputError("the JSON is nested too deeply", where=source) from exc
    if isinstance(value, dict) and set(cast("dict[str, object]", value)) == {"inputs"}:
        value = cast("dict[str, object]", value)["inputs"]
    table = cast("dict[str, object]", value) if isinstance(value, dict) else {specs[0].name: value}
    if not isinstance(value, dict) and len(specs) > 1:
        raise InvalidInputError("the input names no tensors", where=source, expected=", ".join(s.name for s in specs))
    arrays: dict[str, np.ndarray] = {}
    texts = {spec.name for spec in specs if spec.dtype == "string"}
    for name, values in table.items():
        try:
            arrays[name] = np.array(values, dtype=object) if name in texts else np.asarray(values)
        except ValueError as exc:
            raise InvalidInputError(f"the values of `{name}` are ragged", where=source) from exc
    return _cast_all(arrays, source, specs)


def _from_numpy(path: Path, specs: tuple[TensorSpec, ...]) -> dict[str, np.ndarray]:
    import zipfile

    import numpy as np

    from noa.errors import InvalidInputError

    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        else:
            arrays = {specs[0].name: np.load(path, allow_pickle=False)}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as exc:
        raise InvalidInputError(f"not a NumPy file: {exc}", where=str(path)) from exc
    return _cast_all(arrays, str(path), specs)


def _cast_all(arrays: dict[str, np.ndarray], source: str, specs: tuple[TensorSpec, ...]) -> dict[str, np.ndarray]:
    """Cast to the signature's dtypes where no value changes; floats may lose precision, never kind or range."""
    import numpy as np

    from noa.errors import InvalidInputError
    from noa.signatures import dtype_name, is_float, numpy_dtype
    from noa.text_tensors import check_texts, is_text

    wanted = {spec.name: spec.dtype for spec in specs}
    cast_arrays: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if wanted.get(name, dtype_name(array.dtype)) == dtype_name(array.dtype):
            if is_text(array.dtype):
                check_texts(array, field=name, name=f"input `{name}`")
            cast_arrays[name] = array
            continue
        dtype = numpy_dtype(wanted[name])
        kinds_fit = array.dtype.kind in {"f": "iuf", "i": "iu", "u": "iu", "b": "b", "O": "", "V": "iuf"}[dtype.kind]
        with np.errstate(over="ignore", invalid="ignore"):
            changed = array.astype(dtype) if kinds_fit else array
        is_whole = is_float(dtype.name) or bool((changed == array).all())
        if (
            not kinds_fit
            or not is_whole
            or bool((np.isinf(changed) & ~np.isinf(array)).any() if is_float(dtype.name) else False)
        ):
            raise InvalidInputError(
                f"the values of `{name}` do not fit its dtype",
                where=source,
                expected=wanted[name],
                received=dtype_name(array.dtype),
            )
        cast_arrays[name] = changed
    return cast_arrays


def _classes(name: str, values: object) -> list[tuple[int, float]]:
    """Return the likeliest class of each item and its softmax probability, for the logits of a classifier."""
    import numpy as np

    scores = np.asarray(values, dtype=object)
    if name != "logits" or scores.ndim != 2 or scores.shape[1] < 2 or any(value is None for value in scores.flat):
        return []
    logits = scores.astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return [(int(row.argmax()), float(row.max())) for row in shares]


def _plain(array: np.ndarray) -> object:
    """Return nested lists; JSON has no NaN or infinity, so these become null."""
    import numpy as np

    if array.dtype.kind == "V":  # each bfloat16 is a float32
        array = array.astype(np.float32)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        plain = array.astype(object)
        plain[~np.isfinite(array)] = None
        return cast("object", plain.tolist())
    return cast("object", array.tolist())
