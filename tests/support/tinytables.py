"""Small random rollout and score tables, in memory and in a store, for tests of their readers."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.shards.parquet import write_table
from pipeline.shards.scores import write_scores
from pipeline.store.commit import content_shard
from pipeline.store.storage import Storage
from pipeline.teachers.teacher import Scorer
from schemas.columns import list_lengths
from schemas.fingerprint import sequence_digest
from schemas.records.runs import RolloutManifest
from schemas.records.scores import ScoreManifest, ScorerIdentity
from schemas.records.shards import UnitShard
from schemas.tables import ROLLOUT, SCORES

K, VOCAB = 3, 11
POLICY = "policy-a"


def rollout_table(
    rows: int,
    *,
    seed: int = 0,
    teachers: Sequence[str] = ("main",),
    rounds: Sequence[int] = (0,),
    policy: str = POLICY,
    vocab: int = VOCAB,
) -> pa.Table:
    """Return random sequences; teachers and rounds are drawn from the given ones.

    Some tokens are masked, weights differ, and every response has at least one token.
    """
    random = np.random.default_rng(seed)
    prompts = [random.integers(1, vocab, n).tolist() for n in random.integers(1, 7, rows)]
    responses = [random.integers(1, vocab, n).tolist() for n in random.integers(1, 9, rows)]
    columns = {
        "sequence_id": [f"{seed}/{row}" for row in range(rows)],
        "sequence_digest": [sequence_digest(p, r) for p, r in zip(prompts, responses, strict=True)],
        "prompt_id": [f"p{row}" for row in range(rows)],
        "sample_index": [0] * rows,
        "round": random.choice(rounds, rows).tolist(),
        "policy_version": [policy] * rows,
        "prompt_ids": prompts,
        "response_ids": responses,
        "response_mask": [(random.random(len(r)) < 0.8).tolist() for r in responses],
        "rollout_student_logprobs": [(-random.exponential(1, len(r))).tolist() for r in responses],
        "student_topk_ids": [None] * rows,
        "student_topk_logprobs": [None] * rows,
        "student_sample_ids": [None] * rows,
        "student_sample_logprobs": [None] * rows,
        "student_sample_count": [None] * rows,
        "finish_reason": ["stop"] * rows,
        "seed": list(range(rows)),
        "teacher": random.choice(teachers, rows).tolist(),
        "weight": random.uniform(0.5, 2, rows).tolist(),
        "reward": [None] * rows,
        "reference": [None] * rows,
        "metadata": [None] * rows,
        "text": [None] * rows,
    }
    return pa.table(columns, schema=ROLLOUT)


def score_rows(rows: pa.Table, *, seed: int = 0, k: int = K, vocab: int = VOCAB) -> pa.Table:
    """Return random scores of rollout rows."""
    random = np.random.default_rng(seed)
    lengths: list[int] = list_lengths(rows, "response_ids").tolist()
    ids = [[random.permutation(vocab)[:k] for _ in range(n)] for n in lengths]
    top = [-np.sort(random.exponential(1, (n, k)), axis=1) for n in lengths]
    columns = {
        "sequence_digest": rows.column("sequence_digest").to_pylist(),
        "topk_ids": [np.concatenate(row) for row in ids],
        "topk_logprobs": [row.reshape(-1).astype(np.float16).astype(np.float32) for row in top],
        "tail_logprobs": [-random.exponential(2, n) for n in lengths],
        "token_logprob": [-random.exponential(1, n) for n in lengths],
        "token_rank": [random.integers(1, vocab, n) for n in lengths],
        "entropy": [random.uniform(0, 2, n) for n in lengths],
    }
    absent = {name: [None] * len(lengths) for name in SCORES.names if name not in columns}
    return pa.table({**columns, **absent}, schema=SCORES)


def make_scorer(name: str = "main", *, k: int = K, vocab: int = VOCAB) -> Scorer:
    """Return the scorer of a teacher that is nowhere."""
    identity = ScorerIdentity(
        model={"weights": name},
        engine="hf",
        engine_version="1",
        dtype="float32",
        quantization=None,
        tokenizer="t",
        template=None,
        vocab_size=vocab,
        codec="typed-v1",
        signal={"k": k},
    )
    return Scorer(name, identity, None)


def store_rollout(
    storage: Storage, tables: Sequence[pa.Table], *, round_index: int = 0
) -> RolloutManifest:
    """Store one shard per table and return the manifest of a round that names them."""
    units = []
    for index, table in enumerate(tables):
        data = write_table(table, {}, token_column="response_ids")
        tokens = int(list_lengths(table, "response_ids").sum())
        shard = content_shard("rollouts", data, rows=table.num_rows, tokens=tokens)
        storage.put(shard.key, data)
        units.append(UnitShard(unit=f"u{index:05d}", shard=shard))
    return RolloutManifest(
        run="tiny",
        round=round_index,
        policy_version=POLICY,
        fingerprint="rollout",
        units=tuple(units),
        rows=sum(unit.shard.rows for unit in units),
        tokens=sum(unit.shard.tokens for unit in units),
    )


def store_scores(storage: Storage, tables: Sequence[pa.Table], scorer: Scorer) -> ScoreManifest:
    """Store one shard per score table and return the manifest that names them."""
    units = []
    for index, table in enumerate(tables):
        data = write_scores(table, scorer.identity)
        tokens = int(list_lengths(table, "token_logprob").sum())
        shard = content_shard(f"{scorer.folder}/data", data, rows=table.num_rows, tokens=tokens)
        storage.put(shard.key, data)
        units.append(UnitShard(unit=f"u{index:05d}", shard=shard))
    return ScoreManifest(
        run="tiny",
        round=0,
        teacher=scorer.name,
        scorer=scorer.key,
        rollout_fingerprint="rollout",
        units=tuple(units),
        rows=sum(unit.shard.rows for unit in units),
        tokens=sum(unit.shard.tokens for unit in units),
        reused_rows=0,
        teacher_tokens=0,
        reverse_kl=None,
    )
