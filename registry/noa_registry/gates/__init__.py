"""Gates: may this version become the holder of this alias?

`evaluate` is a pure function of what was measured (`GateInput`). Three rules always hold: the bytes on disk are the
sealed ones, every format that is not native has passed evidence of equivalence for exactly these bytes, and the model's
own limits (`GateSettings`) are met. Each rule gives one verdict with what was expected and what was found, also when it
passed, so that the ledger tells later why a version went live. A rule that lacks what it needs refuses and says what to
do; nothing that is missing, not finite or not readable passes.
"""

from noa_registry.gates.bootstrap import BootstrapPlan, PairedDifference, paired_difference
from noa_registry.gates.candidate import TEST_SPLIT, ApprovalFact, Candidate, GateInput
from noa_registry.gates.counted_values import is_lower_better
from noa_registry.gates.evaluation import evaluate, evaluate_rollback
from noa_registry.gates.evidence_rules import bytes_verdict
from noa_registry.gates.policy import PolicyView
from noa_registry.gates.report import GateReport, RuleVerdict, report_of
from noa_registry.gates.work import GateWork

__all__ = [
    "TEST_SPLIT",
    "ApprovalFact",
    "BootstrapPlan",
    "Candidate",
    "GateInput",
    "GateReport",
    "GateWork",
    "PairedDifference",
    "PolicyView",
    "RuleVerdict",
    "bytes_verdict",
    "evaluate",
    "evaluate_rollback",
    "is_lower_better",
    "paired_difference",
    "report_of",
]
