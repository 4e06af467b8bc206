"""Our losses beside those of TRL, computed in its own environment; skipped where there is none."""

import json
import subprocess

import pytest
import torch

from schemas.config.loss import LossConfig
from tests.support.lossreference import build, loss_and_gradient, random_logits, raw_columns, rng
from tests.support.repository import REPOSITORY

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
ROWS, VOCAB = 24, 17


def test_the_generalised_jsd_over_the_whole_vocabulary_is_that_of_trl() -> None:
    python = REPOSITORY / ".venv-peers" / "bin" / "python"
    if not python.exists():
        pytest.skip("there is no TRL in .venv-peers: make .venv-peers/.peers brings it")
    student_TV = random_logits(ROWS, VOCAB, sharp=3.0, seed=1)
    teacher_TV = random_logits(ROWS, VOCAB, sharp=3.0, seed=2)
    given = {"student": student_TV.tolist(), "teacher": teacher_TV.tolist(), "betas": BETAS}
    done = subprocess.run(
        [python, REPOSITORY / "tests" / "support" / "gkdloss.py"],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    tokens_T = torch.randint(0, VOCAB, (ROWS,), generator=rng(3))
    targets = build(raw_columns(teacher_TV, tokens_T, VOCAB))
    for beta, theirs in zip(BETAS, json.loads(done.stdout.splitlines()[-1]), strict=True):
        loss_T, grad_TV = loss_and_gradient(student_TV, targets, LossConfig(kind="jsd", beta=beta))
        for name, found in (("loss", loss_T), ("gradient", grad_TV)):
            expected = torch.tensor(theirs[name], dtype=torch.float64)
            torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=2e-6)
