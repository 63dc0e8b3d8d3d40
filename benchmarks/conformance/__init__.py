"""Conformance: every case of the backend test suite of the `onnx` package through our two importers, on the same rules.

    python -m benchmarks.conformance                            # all 2,024 cases, both targets (some minutes)
    python -m benchmarks.conformance --case test_abs            # one case in this process, with the full traceback
    python -m benchmarks.conformance --op Conv --failures       # all cases with this operator, reasons of failures
    python -m benchmarks.conformance --only 'test_(re)?size' --target torch --failures
    python -m benchmarks.conformance --record                   # write what was measured to expected.csv
    python -m benchmarks.conformance --write-docs               # write docs/onnx-support.md from expected.csv

A case passes, is wrong (ran, but an output differs), refused (`ConversionError`) or an error (anything else: an
exception, a crash, more time or memory than allowed). The rules are in `benchmarks/README.md`.

`cases` reads the suite, `torch_runner` and `jax_runner` import and run one case, `comparison` judges its outputs,
`verdicts` puts these together, `pool` runs many in watched processes, `records` keeps what was measured and `report`
prints it. `support_page` makes the documentation, `real_models` tries files that ship in wheels.
"""
