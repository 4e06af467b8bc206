"""A further signal and a further codec cost as many code files as CONTRIBUTING.md says.

A copy of the code gets the edits that somebody would make, and no others, and a process that runs
on the copy shows that they are enough.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.shards.codec import CODECS
from pipeline.shards.scores import write_scores
from schemas.fingerprint import sha256
from tests.support.repository import REPOSITORY
from tests.support.tinytables import make_scorer, rollout_table, score_rows

Edits = dict[str, list[tuple[str, str]]]
"""File → places, each with the text that is put before it."""

SIGNAL: Edits = {
    "schemas/scoresignal.py": [
        (
            "    @property\n    def ragged",
            '    normaliser: bool = False\n    """Its key\'s."""\n\n',
        ),
        (
            ')\n"""Every column of a score table',
            '    ScoreColumn("log_normaliser", Kind.FLOATS, lambda s: int(s.normaliser)),\n',
        ),
    ],
    "pipeline/scores/signals.py": [
        (
            "    moment_T = torch.linalg.vecdot(weights_TV, shifted_TV)\n",
            "    if signal.normaliser:\n"
            "        half_T = (shifted_TV / 2).logsumexp(-1)\n"
            '        found["log_normaliser"] = half_T + highest_T1[:, 0] / 2\n',
        )
    ],
}
"""A signal: its row and its field, and where it is computed."""

KEY: Edits = {
    "schemas/config/score.py": [
        (
            "    noise_tolerance:",
            '    normaliser: bool = False\n    """Keep the log-normaliser at temperature 2."""\n',
        )
    ]
}
"""The key that asks for it."""

CODEC: Edits = {
    "pipeline/shards/plain.py": [],
    "pipeline/shards/codec.py": [
        ("from pipeline.shards import typed", "from pipeline.shards import plain\n"),
        (
            '    "packed-v1": Codec(',
            '    "plain-v1": Codec(plain.encode, plain.decode, renumbers=False),\n',
        ),
    ],
    "schemas/config/score.py": [('"packed-v1"] = ', '"plain-v1", ')],
}
"""A codec: its module, its line in the seam, and its name in the configuration."""

PLAIN = '''"""Columns as they are in memory."""

from schemas.tables import DIGEST, with_absent


def encode(table, *, signal, vocab_size, renumbering):
    """Return the columns that there are."""
    return table.select([DIGEST.name, *(column.name for column in signal.columns)])


def decode(table, *, signal, vocab_size, renumbering, where):
    """Return the score table."""
    return with_absent({name: table.column(name) for name in table.column_names})
'''


def edit(copy: Path, edits: Edits) -> None:
    for name, places in edits.items():
        text = (copy / name).read_text(encoding="utf-8")
        for place, before in places:
            assert text.count(place) == 1, f"{name} has {text.count(place)} times {place!r}"
            text = text.replace(place, before + place)
        (copy / name).write_text(text, encoding="utf-8")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the code."""
    folder = tmp_path / "copy"
    for name in ("schemas", "pipeline", "cli", "tests/support"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    return folder


@pytest.mark.slow
def test_a_further_signal_and_a_further_codec_need_as_few_files_as_promised(
    copy: Path, tmp_path: Path
) -> None:
    assert (len(SIGNAL), len(KEY), len(CODEC)) == (2, 1, 3)
    (copy / "pipeline/shards/plain.py").write_text(PLAIN, encoding="utf-8")
    for edits in (SIGNAL, KEY, CODEC):
        edit(copy, edits)
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.grown", str(copy), str(tmp_path)],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["codecs"]) == {*CODECS, "plain-v1"}
    for codec in CODECS:  # whoever keeps no more than before has the same key and the same bytes
        identity = make_scorer().identity.model_copy(update={"codec": codec})
        stored = sha256(write_scores(score_rows(rollout_table(9)), identity))
        assert found["older"][identity.key] == stored
