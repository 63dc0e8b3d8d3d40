"""What a gate looks at: a version with its evidence, the present holder of the alias, approvals and the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from noa_registry.evidence.facts import METRICS, PREDICTIONS, Evidence
from noa_registry.gates.known_policy import KnownPolicy

if TYPE_CHECKING:
    from noa.settings import GateSettings
    from noa.signatures import Signature

TEST_SPLIT = "test"
PREFERRED_FORMAT = "onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalFact:
    """A principal has allowed that the version with this digest takes the alias; still valid and not used."""

    principal: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A version as a gate sees it: its formats (name -> digest), their sizes in bytes, and its evidence, oldest
    first.

    `dataset_digest` names the data it was made from; only measurements on `test_rows` count, on any if it is empty.
    """

    reference: str
    native: str
    formats: Mapping[str, str]
    evidence: Sequence[Evidence]
    digest: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])
    signature: Signature | None = None
    dataset_digest: str = ""
    test_rows: tuple[str, ...] = ()

    @property
    def served_formats(self) -> tuple[str, ...]:
        """The formats by whose measurements the version is judged, best first: `onnx` if it has any, then the native
        one."""
        wanted = dict.fromkeys((PREFERRED_FORMAT, self.native))
        return tuple(name for name in wanted if name in self.formats)

    def newest(self, kind: str, subject: str) -> Evidence | None:
        """Return the newest evidence of `kind` that was measured on the sealed bytes of format `subject`."""
        digest = self.formats.get(subject)
        matches = (e for e in reversed(self.evidence) if e.kind == kind and e.subject == subject)
        return next((e for e in matches if e.digest == digest), None)

    def on_test_rows(self, kind: str, dataset_digest: str | None = None) -> Evidence | None:
        """Return the newest evidence of `kind` on the test split, of `onnx` if it has any, else of the native format.

        `dataset_digest`: only if it was measured on these rows.
        """
        for subject in self.served_formats:
            for evidence in reversed(self.evidence):
                if (
                    evidence.kind == kind
                    and evidence.subject == subject
                    and evidence.digest == self.formats[subject]
                    and evidence.values.get("split") == TEST_SPLIT
                    and dataset_digest in (None, evidence.values.get("dataset_digest"))
                    and (not self.test_rows or evidence.values.get("dataset_digest") in self.test_rows)
                ):
                    return evidence
        return None

    def test_metrics(self, dataset_digest: str | None = None) -> Evidence | None:
        """Return the newest test metrics of the sealed bytes, of `onnx` if it has any, else of the native format."""
        return self.on_test_rows(METRICS, dataset_digest)

    def all_test_metrics(self, dataset_digest: str | None = None) -> tuple[Evidence, ...]:
        """Return all test metrics of the sealed bytes, oldest first; `dataset_digest`: only on these rows.

        Of each set of rows they are of `onnx` if it was measured there, else of the native format.
        """
        found = [
            fact
            for fact in self.evidence
            if fact.kind == METRICS
            and fact.subject in self.served_formats
            and fact.digest == self.formats[fact.subject]
            and fact.values.get("split") == TEST_SPLIT
            and dataset_digest in (None, fact.values.get("dataset_digest"))
            and (not self.test_rows or fact.values.get("dataset_digest") in self.test_rows)
        ]
        best = self.served_formats[:1]
        served = {repr(fact.values.get("dataset_digest")) for fact in found if fact.subject in best}
        return tuple(
            fact for fact in found if fact.subject in best or repr(fact.values.get("dataset_digest")) not in served
        )

    def explains(self, dataset_digest: str) -> bool:
        """Tell whether the version was made from these rows, or its answers for them are kept."""
        return dataset_digest == self.dataset_digest or self.on_test_rows(PREDICTIONS, dataset_digest) is not None

    def on_all_rows(self) -> Candidate:
        """Return the version with all its measurements."""
        return replace(self, test_rows=())


@dataclass(frozen=True, slots=True, kw_only=True)
class GateInput:
    """All that a verdict depends on. `bytes_problem` tells what re-hashing found (None: all files are what was sealed).

    `known_policy` is the one that the model was judged by before. `approvals` are those that are valid for this move;
    one by `actor`, who asks for it, does not count.
    """

    candidate: Candidate
    alias: str
    bytes_problem: str | None = None
    policy: GateSettings | None = None
    known_policy: KnownPolicy | None = None
    holder: Candidate | None = None
    approvals: tuple[ApprovalFact, ...] = ()
    actor: str = ""

    @property
    def rival(self) -> Candidate | None:
        """The holder, if it is another version than the candidate."""
        if self.holder is None or self.holder.reference == self.candidate.reference:
            return None
        return self.holder

    def on_rows(self, digests: tuple[str, ...]) -> GateInput:
        """Return the same, of both versions only with what was measured on these test rows; on all if none is named."""
        holder = None if self.holder is None else replace(self.holder, test_rows=digests)
        return replace(self, candidate=replace(self.candidate, test_rows=digests), holder=holder)
