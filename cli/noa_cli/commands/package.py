"""`noa package`: an endpoint as a folder for BentoML, container builders and Kubernetes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from noa_cli import _console as console
from noa_cli._invocation import current
from noa_cli._options import DryRunOption, JsonOption
from noa_cli._registry import open_registry
from noa_cli.commands.serve import choose_endpoints

if TYPE_CHECKING:
    from noa.settings import Settings


def package(
    what: Annotated[str, typer.Argument(help="An endpoint of noa.toml, `name@alias` or `name/number`.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="The new folder (default: NAME-NUMBER).")
    ] = None,
    format: Annotated[str | None, typer.Option("--format", help="Which format computes.")] = None,  # our word
    extra: Annotated[
        list[str] | None, typer.Option("--with", help="`arrow`, `jwt`, `grpc` or `trace` besides (repeatable).")
    ] = None,
    image: Annotated[
        str, typer.Option("--image", help="The image that the manifests name, as it will be pushed.")
    ] = "",
    base_image: Annotated[
        str | None, typer.Option("--base-image", help="What the Containerfile begins with, best with a digest.")
    ] = None,
    replicas: Annotated[int, typer.Option("--replicas", min=1, help="The fewest replicas in a cluster.")] = 2,
    max_replicas: Annotated[int, typer.Option("--max-replicas", min=1, help="The most replicas.")] = 10,
    autoscaler: Annotated[
        Literal["hpa", "keda"], typer.Option("--autoscaler", help="What changes their number.")
    ] = "hpa",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write an endpoint, pinned to its version, as a Bento, a container's build context and Kubernetes manifests."""
    from noa_serving.packaging import Deploying, make_package

    settings = current().settings()
    _refuse_pipeline(settings, what)
    endpoint, rule = next(iter(choose_endpoints(settings, [what]).items()))
    if format is not None:
        rule = rule.model_copy(update={"format": format})
    deploying = Deploying(
        image=image, replicas=replicas, max_replicas=max(replicas, max_replicas), autoscaler=autoscaler
    )
    with open_registry(settings, about=[rule.model]) as registry, console.step(f"Packaging {rule.model}"):
        made = make_package(
            registry,
            endpoint,
            rule,
            settings.serving,
            deploying=deploying,
            extras=extra or (),
            base_image=base_image,
        )
        version = made.version
        folder = current().directory / (output or f"{endpoint}-{version.number}")
        digest = None if dry_run else made.write(folder).digest
    if as_json:
        console.print_json(
            {
                "folder": str(folder),
                "written": not dry_run,
                "endpoint": endpoint,
                "reference": version.reference,
                "digest": version.digest,
                "format": version.format.name,
                "format_digest": version.format.manifest.digest,
                "folder_digest": digest,
                "image": made.image,
                "files": made.files,
                "packages": dict(made.lean.pins),
            }
        )
        return
    said = "would hold" if dry_run else "holds"
    size = sum(made.files.values())
    console.print_line(
        f"{folder} {said} {version.reference} as {version.format.name}: {size:,} bytes, {version.digest}"
    )
    for name, size_bytes in made.files.items():
        console.print_line(f"  {size_bytes:>12,}  {name}")
    console.print_line(f"  {len(made.lean.pins)} packages in requirements.txt; image {made.image}")
    if not dry_run:
        console.note(f"Run it with: pip install -r requirements.txt && bentoml serve . --host 127.0.0.1, in {folder}")


def _refuse_pipeline(settings: Settings, what: str) -> None:
    from noa.errors import InvalidInputError

    if what in settings.pipelines:
        parts = ", ".join(f"`{name}`" for name in sorted(settings.pipelines[what].endpoints))
        raise InvalidInputError(
            f"`{what}` is a pipeline, and a package holds one endpoint",
            expected="an endpoint, `name@alias` or `name/number`",
            received=what,
            remedy=f"Package its endpoints ({parts}) and call them in turn, or run `noa serve {what}`",
        )
