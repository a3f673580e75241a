"""Whether the model still measures as its baseline says; copy to your tests.

The baseline is a folder of records: `ctxext eval … --data manual --out baseline`, committed.
"""

from __future__ import annotations

import os

import ctxext

BASELINE = os.environ.get("BASELINE", "baseline")


def test_the_model_measures_as_it_did() -> None:
    outcome = ctxext.check(BASELINE, sigma=3)
    assert outcome.passed, str(outcome)
