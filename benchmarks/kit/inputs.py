"""What benchmarks run on: random models and sequences, all from a seed, of any size."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.models.source import ModelSource
from pipeline.shards.parquet import write_table
from pipeline.store.commit import content_shard
from pipeline.store.storage import Storage
from pipeline.teachers.teacher import Scorer
from schemas.columns import Ids, list_lengths
from schemas.config.engines import EngineSection
from schemas.fingerprint import sequence_digest
from schemas.records.runs import RolloutManifest
from schemas.records.scores import ScoreManifest, ScorerIdentity
from schemas.records.shards import Shard, UnitShard
from schemas.tables import ROLLOUT

TEACHER, POLICY = "main", "policy"


@dataclass(frozen=True)
class Size:
    """A Qwen3 architecture with tied embeddings."""

    name: str
    hidden: int
    layers: int
    vocab: int
    head: int | None = None
    """Width of an attention head; default the hidden size over four or five heads."""


TINY = Size("tiny", hidden=64, layers=2, vocab=512)
MEDIUM = Size("20M", hidden=320, layers=8, vocab=32_000)
"""20.6 million parameters, half of them the embedding."""


@dataclass(frozen=True)
class Sequences:
    """Prompts and responses of random ids and unequal lengths."""

    prompts: list[Ids]
    responses: list[Ids]

    @property
    def tokens(self) -> int:
        """Tokens that a teacher reads."""
        return sum(len(row) for row in (*self.prompts, *self.responses))


def make_model(folder: Path, size: Size, *, seed: int) -> ModelSource:
    """Write a random model and return where it is."""
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.utils.logging import disable_progress_bar

    make: Any = Qwen3Config
    config = make(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=3 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=5 if size.hidden % 5 == 0 else 4,
        num_key_value_heads=5 if size.hidden % 5 == 0 else 2,
        head_dim=size.head or size.hidden // (5 if size.hidden % 5 == 0 else 4),
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
    )
    quieten: Any = disable_progress_bar
    quieten()
    torch.manual_seed(seed)
    model: Any = Qwen3ForCausalLM
    model(config).float().save_pretrained(folder)
    return ModelSource(str(folder), None, False)


def engine_section(*, batch_tokens: int) -> EngineSection:
    """Return the settings of an engine on the CPU."""
    return EngineSection(device="cpu", batch_tokens=batch_tokens)


def make_sequences(rows: int, vocab: int, *, seed: int, response: tuple[int, int]) -> Sequences:
    """Return random sequences: prompts of 8 to 32 tokens, responses between two lengths."""
    random = np.random.default_rng(seed)

    def draw(low: int, high: int) -> list[Ids]:
        lengths = random.integers(low, high + 1, rows)
        return [random.integers(2, vocab, n).astype(np.int32) for n in lengths]

    return Sequences(draw(8, 32), draw(*response))


def rollout_rows(sequences: Sequences) -> pa.Table:
    """Return sequences as a rollout table, every token the student's own."""
    prompts, responses = sequences.prompts, sequences.responses
    rows = len(prompts)
    digests = [sequence_digest(p, r) for p, r in zip(prompts, responses, strict=True)]
    columns = {
        "sequence_id": [str(row) for row in range(rows)],
        "sequence_digest": digests,
        "prompt_id": [str(row) for row in range(rows)],
        "sample_index": [0] * rows,
        "round": [0] * rows,
        "policy_version": [POLICY] * rows,
        "prompt_ids": prompts,
        "response_ids": responses,
        "response_mask": [np.ones(len(r), dtype=bool) for r in responses],
        "rollout_student_logprobs": [np.full(len(r), -1, np.float32) for r in responses],
        "student_topk_ids": [None] * rows,
        "student_topk_logprobs": [None] * rows,
        "student_sample_ids": [None] * rows,
        "student_sample_logprobs": [None] * rows,
        "student_sample_count": [None] * rows,
        "finish_reason": ["stop"] * rows,
        "seed": list(range(rows)),
        "teacher": [TEACHER] * rows,
        "weight": [1.0] * rows,
        "reward": [None] * rows,
        "reference": [None] * rows,
        "metadata": [None] * rows,
        "text": [None] * rows,
    }
    return pa.table(columns, schema=ROLLOUT)


def make_scorer(*, vocab: int, k: int) -> Scorer:
    """Return the scorer of a teacher that is nowhere."""
    identity = ScorerIdentity(
        model={"weights": "random"},
        engine="hf",
        engine_version="1",
        dtype="float32",
        quantization=None,
        tokenizer="none",
        template=None,
        vocab_size=vocab,
        codec="typed-v1",
        signal={"k": k},
    )
    return Scorer(TEACHER, identity, None)


def store_rollout(storage: Storage, tables: Sequence[pa.Table]) -> RolloutManifest:
    """Store one shard per table and return the manifest that names them."""
    shards = []
    for table in tables:
        data = write_table(table, {}, token_column="response_ids")
        shards.append(store_shard(storage, "rollouts", data, table, "response_ids"))
    units = tuple(UnitShard(unit=f"u{i:05d}", shard=s) for i, s in enumerate(shards))
    return RolloutManifest(
        run="bench",
        round=0,
        policy_version=POLICY,
        fingerprint="rollout",
        units=units,
        rows=sum(s.rows for s in shards),
        tokens=sum(s.tokens for s in shards),
    )


def store_shard(
    storage: Storage, folder: str, data: bytes, table: pa.Table, token_column: str
) -> Shard:
    """Store the bytes of a table and return what names them."""
    tokens = int(list_lengths(table, token_column).sum())
    shard = content_shard(folder, data, rows=table.num_rows, tokens=tokens)
    storage.put(shard.key, data)
    return shard


def score_manifest(
    rollout: RolloutManifest, units: Sequence[UnitShard], scorer: str
) -> ScoreManifest:
    """Return what names the scores of a rollout, all of them made."""
    return ScoreManifest(
        run=rollout.run,
        round=0,
        teacher=TEACHER,
        scorer=scorer,
        rollout_fingerprint=rollout.fingerprint,
        units=tuple(units),
        rows=rollout.rows,
        tokens=rollout.tokens,
        reused_rows=0,
        teacher_tokens=0,
        reverse_kl=None,
    )
