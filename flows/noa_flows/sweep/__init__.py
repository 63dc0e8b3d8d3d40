"""Search for the best settings of a recipe: trials as ordinary jobs, the best one registered with what chose it.

`plan_sweep` checks a search before any work, `run_sweep` runs or continues it, `read_sweep` looks at one. How the parts
fit: `plan` (what is asked) -> `search` (draws and records trials) -> `trial_run` (one trial) -> `outcome` (the best
version); `optuna_study` holds the trials, `folder` the files, `slots` the cores.
"""

from noa_flows.sweep.folder import find_sweep, sweep_names
from noa_flows.sweep.outcome import SWEEP, SWEEP_TAG, TRIAL_TAG
from noa_flows.sweep.plan import SweepPlan, parse_space, plan_sweep
from noa_flows.sweep.run import preview_trials, read_sweep, run_sweep
from noa_flows.sweep.values import (
    RegisteredTrial,
    SweepCounts,
    SweepEvent,
    SweepReport,
    TrialView,
)

__all__ = [
    "SWEEP",
    "SWEEP_TAG",
    "TRIAL_TAG",
    "RegisteredTrial",
    "SweepCounts",
    "SweepEvent",
    "SweepPlan",
    "SweepReport",
    "TrialView",
    "find_sweep",
    "parse_space",
    "plan_sweep",
    "preview_trials",
    "read_sweep",
    "run_sweep",
    "sweep_names",
]
