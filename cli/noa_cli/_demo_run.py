"""The demo's story, told with the same functions that the commands call: nothing in it is made for the demo.

Services start in the background while both backends train. Then: the better model (on the validation split) is promoted
and served, every held-out image goes through HTTP, a scheduled deployment retrains with more data while requests keep
coming, and a rollback ends it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noa.errors import ServiceError
from noa_cli import _console as console
from noa_cli._demo_traffic import Answers, send_each, stream
from noa_cli._invocation import actor
from noa_cli._registry import open_registry
from noa_cli._training_progress import follow
from noa_cli.commands.flows import shorten_log

if TYPE_CHECKING:
    from noa.settings import Settings
    from noa_flows import PipelineResult, ServiceEvent, ServiceStatus
    from noa_registry import ModelVersion
    from noa_training import Split

MODEL, ENDPOINT, ALIAS = "digits", "digits", "champion"
FIRST_FRACTION = 0.5
LEAST_ACCURACY = 0.98
_SWAP_TIMEOUT_S = 30.0
_TELL_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """What the demo measured; `problems` is empty if everything held."""

    values: dict[str, Any]
    problems: tuple[str, ...]


class Demo:
    """One run of the demo in a project folder whose services it starts; the caller stops them."""

    def __init__(self, settings: Settings, *, quiet: bool) -> None:
        self._settings = settings
        self._quiet = quiet
        self._started = time.monotonic()
        self._values: dict[str, Any] = {}
        self._problems: list[str] = []
        self._heard = ""

    def run(self) -> DemoReport:
        """Tell the whole story."""
        from noa_flows import up

        with ThreadPoolExecutor(max_workers=1) as pool:
            services: Future[list[ServiceStatus]] = pool.submit(up, self._settings, on_progress=self._hear)
            first = self._train()
            self._head("2", "Start the Prefect server, the worker, the MLflow UI and the endpoint")
            with self._step("Waiting for the services (they were started while the models trained)") as tell:
                while not wait((services,), timeout=_TELL_EVERY_S).done:
                    tell(self._heard)
                statuses = services.result()
        url = next(found.address for found in statuses if found.name == "serving") or ""
        self._addresses(statuses)
        test = _test_split(self._settings)
        self._serve(url, test, first)
        self._retrain(url, test)
        self._roll_back(url, test)
        self._values["seconds"] = round(time.monotonic() - self._started, 1)
        return DemoReport(values=self._values, problems=tuple(self._problems))

    def _hear(self, event: ServiceEvent) -> None:
        self._heard = f"{event.service or ''} {event.phase}"

    def _train(self) -> PipelineResult:
        from noa_flows import run_pipeline

        self._head("1", f"Train on torch and JAX in parallel, with {FIRST_FRACTION:.0%} of the training images")
        with follow() as on_event:
            result = run_pipeline(
                self._settings,
                MODEL,
                backends=("torch", "jax"),
                overrides={"data.fraction": FIRST_FRACTION},
                promote=True,
                on_event=on_event,
                actor=actor(),
            )
        self._candidates(result)
        return result

    def _candidates(self, result: PipelineResult) -> None:
        rows: list[list[object]] = []
        with open_registry(self._settings) as registry:
            for candidate in result.candidates:
                proofs = [
                    fact
                    for fact in registry.evidence(candidate.version.name, candidate.version.number)
                    if fact.kind == "equivalence"
                ]
                proof = proofs[-1]
                rows.append(
                    [
                        candidate.version.reference,
                        candidate.backend,
                        f"{candidate.validation['accuracy']:.4f}",
                        f"{candidate.metrics['accuracy']:.4f}",
                        f"{proof.values['max_abs_error']:.1e}",
                        "passed" if proof.passed else "FAILED",
                        console.short_digest(candidate.version.digest),
                    ]
                )
        columns = ["validation accuracy", "test accuracy", "largest error of onnx", "equivalence", "digest"]
        self._table(["version", "backend", *columns], rows)
        best = result.best.version.reference
        tie = f"; of equals {result.tie_break}" if result.tie_break else ""
        self._line(f"{best} is the better one on the validation split{tie}.")
        self._line(f"The gate let {result.best.version.reference} through: it is {MODEL}@{ALIAS} now.")
        self._values["first"] = result.to_dict()

    def _addresses(self, statuses: list[ServiceStatus]) -> None:
        titles = {"prefect": "Prefect UI", "mlflow": "MLflow UI", "serving": "endpoint", "worker": "worker"}
        self._table(
            ["service", "address", "pid"], [[titles[found.name], found.address, found.pid] for found in statuses]
        )
        self._values["addresses"] = {found.name: found.address for found in statuses}

    def _serve(self, url: str, test: Split, first: PipelineResult) -> None:
        self._head("3", f"Send each of the {test.rows} held-out images through HTTP")
        self._wait_for(url, first.best.version.number)
        with self._step("Predicting"):
            answers = send_each(url, ENDPOINT, test.inputs["image"], test.targets)
        self._report_answers("served", first.best.version, answers, test)

    def _retrain(self, url: str, test: Split) -> None:
        from noa_flows import list_deployments, run, schedule

        self._head("4", "Schedule retraining every night at three, and let the worker do it now with all images")
        identity = schedule(self._settings, MODEL, "0 3 * * *", overrides={"data.fraction": 1.0})
        due = next(found.next_run for found in list_deployments(self._settings) if found.id == identity)
        self._line(f"Prefect deployment {identity}, next run {due:%Y-%m-%d %H:%M} UTC" if due else identity)
        with stream(url, ENDPOINT, test.inputs["image"]) as traffic:
            with self._step("Retraining through Prefect, while requests keep coming") as tell:
                found = run(
                    self._settings,
                    MODEL,
                    wait=True,
                    overrides={"data.fraction": 1.0},
                    on_log=lambda line: tell(shorten_log(line)),
                )
            if not found.is_success:
                raise ServiceError("the retraining run failed", where=found.address, received=found.message)
            version = _champion(self._settings)
            self._wait_for(url, version.number)
        seen = ", ".join(f"{MODEL}/{number}: {count}" for number, count in sorted(traffic.versions.items()))
        self._line(
            f"{traffic.requests} requests during retraining and swap, {len(traffic.failures)} failed, "
            f"slowest {traffic.slowest_ms:.0f} ms, answered by {seen}"
        )
        self._expect(not traffic.failures, f"requests failed during the swap: {traffic.failures[:1]}")
        self._expect(len(traffic.versions) == 2, f"expected answers of two versions, got {sorted(traffic.versions)}")
        answers = send_each(url, ENDPOINT, test.inputs["image"], test.targets)
        self._report_answers("retrained", version, answers, test)
        self._values["swap"] = {
            "requests": traffic.requests,
            "failed": len(traffic.failures),
            "versions": dict(traffic.versions),
        }

    def _roll_back(self, url: str, test: Split) -> None:
        self._head("5", "Roll back: one command, the running server follows")
        with open_registry(self._settings) as registry:
            entry = registry.rollback(MODEL, alias=ALIAS, reason="the demo shows how", actor=actor())
        self._wait_for(url, entry.to_number)
        answers = send_each(url, ENDPOINT, test.inputs["image"][:20], test.targets[:20])
        self._expect(answers.versions == (entry.to_number,), f"the server answers with {answers.versions}")
        with open_registry(self._settings) as registry:
            registry.verify_ledger()
            entries = registry.history(MODEL, alias=ALIAS)
        self._table(
            ["#", "who", "action", "from", "to", "digest", "why"],
            [
                [e.sequence, e.actor, e.action, e.from_number, e.to_number, console.short_digest(e.to_digest), e.reason]
                for e in entries
            ],
        )
        self._values["rollback"] = {"from": entry.from_number, "to": entry.to_number}

    def _report_answers(self, key: str, version: ModelVersion, answers: Answers, test: Split) -> None:
        agreement, error = self._agreement(version, answers, test)
        rows = [
            ["computed by", f"{version.reference} ({console.short_digest(version.digest)}), native {version.native}"],
            ["accuracy over HTTP", f"{answers.accuracy:.4f} on {test.rows} images"],
            ["agreement of formats", f"{agreement:.2%} same class as {version.native}, largest difference {error:.1e}"],
            ["latency", f"p50 {answers.p50_ms:.2f} ms, p99 {answers.p99_ms:.2f} ms"],
        ]
        self._table(["", ""], [[str(cell) for cell in row] for row in rows])
        self._values[key] = {
            "reference": version.reference,
            "digest": version.digest,
            "accuracy": answers.accuracy,
            "agreement": agreement,
            "largest_difference": error,
            "p50_ms": answers.p50_ms,
            "p99_ms": answers.p99_ms,
        }
        self._expect(answers.accuracy >= LEAST_ACCURACY, f"accuracy {answers.accuracy:.4f} is below {LEAST_ACCURACY}")
        self._expect(answers.versions == (version.number,), f"answers came from versions {answers.versions}")

    def _agreement(self, version: ModelVersion, answers: Answers, test: Split) -> tuple[float, float]:
        """Compare what the server answered with what the native format computes here, image by image."""
        import numpy as np

        with open_registry(self._settings) as registry:
            native = registry.load(version.reference, format=version.native)
        logits = native.run({"image": test.inputs["image"]})["logits"]
        same = float((logits.argmax(axis=1) == answers.logits.argmax(axis=1)).mean())
        return same, float(np.abs(logits - answers.logits).max())

    def _wait_for(self, url: str, number: int) -> None:
        """Wait until the endpoint answers with a version."""
        from noa_serving import Client

        deadline = time.monotonic() + _SWAP_TIMEOUT_S
        with Client(url) as client:
            while str(number) not in (client.metadata(ENDPOINT).get("versions") or []):  # type: ignore[operator]
                if time.monotonic() > deadline:
                    raise ServiceError(f"the endpoint does not answer with {MODEL}/{number}", where=url)
                threading.Event().wait(0.05)

    def _expect(self, holds: bool, problem: str) -> None:
        if not holds:
            self._problems.append(problem)

    def _step(self, title: str) -> Any:
        return console.step(title)

    def _head(self, number: str, text: str) -> None:
        elapsed = time.monotonic() - self._started
        self._print(lambda: console.print_line(""))
        self._print(lambda: console.print_line(f"{number}. {text}  [{elapsed:.0f} s]", "bold"))

    def _line(self, text: str) -> None:
        self._print(lambda: console.print_line(text))

    def _table(self, columns: list[str], rows: list[list[Any]]) -> None:
        self._print(lambda: console.print_table(columns, rows))

    def _print(self, action: Callable[[], None]) -> None:
        if not self._quiet:
            action()


def _champion(settings: Settings) -> ModelVersion:
    with open_registry(settings) as registry:
        return registry.resolve(f"{MODEL}@{ALIAS}")


def _test_split(settings: Settings) -> Split:
    from noa_training import load_dataset, load_recipe

    return load_dataset(load_recipe(settings.recipes[MODEL].path, root=settings.root), root=Path(settings.root)).test
