"""Engines kept between stages: real vLLM on the CPU, reloaded, caught with wrong weights."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.checkpoints.claim import INDEX
from pipeline.checkpoints.folder import export_folder
from pipeline.checkpoints.probe import Probe
from pipeline.engines.engine import Engine, Sample
from pipeline.engines.lazy import LazyEngine
from pipeline.engines.opening import open_engine
from pipeline.engines.processes import OWNER
from pipeline.engines.start import Start
from pipeline.engines.vllm.slot import EngineSlot, Weights
from pipeline.engines.vllm.weightcheck import check_gap
from pipeline.models.loading import load_model
from pipeline.models.source import ModelSource
from pipeline.scores.drift import Gap
from pipeline.scores.tolerances import EXACT, RELOAD_FLOOR, ROUNDED_MEAN
from pipeline.store.storage import Storage
from schemas.columns import Ids
from schemas.config.engines import EngineSection, VllmSection
from schemas.errors import ConfigError, IdentityError
from schemas.scoresignal import Signal
from tests.support.checkpoints import as_exported
from tests.support.golden import (
    PLAIN,
    Tiny,
    V,
    adapted,
    generate,
    reference_logprobs,
    reference_scores,
    rows,
)
from tests.support.runs import Cli, children_killed, snapshot
from tests.support.tiny import MAX_NEW_TOKENS, make_model, write_run

ATOL = 1e-4
SECTION = EngineSection(engine="vllm", batch_tokens=512)


@dataclass
class Stages:
    """Stages of one process that sample one after the other."""

    slot: EngineSlot
    max_tokens: int = 60
    notes: list[str] = field(default_factory=list)
    started: int = 0

    def sample(self, weights: Weights, section: EngineSection = SECTION) -> list[Sample]:
        """Sample as a stage does, and keep the engine at its end."""
        found: list[Sample] = self.use(weights, sampled, section)
        return found

    def use(
        self,
        weights: Weights,
        work: Callable[[Any], Any],
        section: EngineSection = SECTION,
    ) -> Any:
        """Do something with an engine that holds some weights."""
        note, dtype = self.notes.append, weights.dtype
        start = Start(
            weights.source, section, dtype=dtype, use="sample", max_tokens=self.max_tokens
        )

        def open_new() -> Engine:
            self.started += 1
            return open_engine(start, note)

        lend = partial(self.slot.lend, start=start, weights=weights, note=note)
        with LazyEngine(open_new, note, lend) as engine:
            before = self.started
            found = work(engine.get())
            assert (engine.start_s > 0.0) == (self.started > before)
        return found


def fresh(weights: Weights) -> list[Sample]:
    """Return what a new engine samples."""
    with EngineSlot() as slot:
        return Stages(slot).sample(weights)


@pytest.fixture
def stages() -> Iterator[Stages]:
    """Return a process that has no engine yet."""
    with EngineSlot() as slot:
        yield Stages(slot)


def sampled(engine: Any) -> list[Sample]:
    return generate(engine, rows(12)[0], PLAIN, range(12))


def sampled_with_less(engine: Any) -> list[Sample]:
    """Sample before and after a start with less memory, which must not bring back old weights."""
    found = sampled(engine)
    assert engine.shrink()
    assert_same_samples(sampled(engine), found)
    return found


def assert_same_samples(found: Sequence[Sample], expected: Sequence[Sample]) -> None:
    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine.ids, other.ids)
        np.testing.assert_array_equal(mine.logprobs, other.logprobs)


@dataclass(frozen=True)
class Trained:
    """A model before and after a training that changed it a little."""

    before: Weights
    after: Weights


Rows = tuple[list[Ids], list[Ids]]


def weights_of(source: ModelSource, reference: Any, version: str, rows: Rows) -> Weights:
    """Return weights with a probe of some rows that is taken from full forwards in float64."""
    model, (prompts, responses) = Tiny(Path(source.location), reference), rows
    scores = reference_scores(model, prompts, responses, k=1, vocab_size=V)
    ends = np.cumsum([len(response) for response in responses])[:-1]
    probe = Probe(
        prompt_ids=tuple(tuple(prompt.tolist()) for prompt in prompts),
        response_ids=tuple(tuple(response.tolist()) for response in responses),
        logprobs=tuple(tuple(part.tolist()) for part in np.split(scores.token_logprob, ends)),
    )
    return Weights(source, version, "float32", probe)


def train(make_folder: Callable[[str], Path], probed: Rows, **settings: Any) -> Trained:
    """Return two checkpoints of a model with a tied head, as `opd` writes them."""
    source = ModelSource(str(make_model(make_folder("model"), **settings)), None, False)
    model: Any = load_model(source, dtype="float32", device="cpu")
    found = []
    for version in ("before", "after"):
        folder = make_folder(version)
        export_folder(model, model.state_dict(), source=source, folder=folder)
        found.append(weights_of(replace(source, location=str(folder)), model, version, probed))
        changed(model)
    return Trained(*found)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return two checkpoints of a model."""
    return train(tmp_path_factory.mktemp, rows(6))


@torch.no_grad()
def changed(model: Any) -> None:
    """Change every weight of a model by some percent, always alike."""
    random = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.mul_(1 + 0.05 * torch.randn(parameter.shape, generator=random))


def index_of(weights: Weights) -> dict[str, str]:
    """Return which tensor of a checkpoint is in which file."""
    words = json.loads((Path(weights.source.location) / INDEX).read_text())
    found: dict[str, str] = words["weight_map"]
    return found


def test_one_engine_serves_checkpoint_after_checkpoint_as_new_ones_would(
    trained: Trained, stages: Stages, tmp_path: Path
) -> None:
    first = stages.sample(trained.before)
    moved = Path(shutil.copytree(trained.before.source.location, tmp_path / "moved"))
    source = replace(trained.before.source, location=str(moved))
    again = stages.sample(replace(trained.before, source=source))
    assert_same_samples(again, first)
    assert stages.started == 1 and "these weights already" in stages.notes[-1]

    second = stages.use(trained.after, sampled_with_less)
    assert stages.started == 1 and "replaced" in stages.notes[-1] and "nats" in stages.notes[-1]
    # the head is tied and packed, and no file names it: vLLM alone leaves the old one, in silence
    assert "lm_head.weight" not in index_of(trained.before)
    assert_same_samples(stages.sample(trained.before), first)
    assert stages.started == 1 and "replaced" in stages.notes[-1]
    stages.sample(trained.after)

    stages.slot.close()
    plain = as_exported(Path(trained.after.source.location), tmp_path)
    source = replace(source, location=str(plain))
    found = fresh(replace(trained.after, source=source))  # vLLM loads what `opd export` writes
    assert_same_samples(second, found)
    assert any(
        one.ids.tobytes() != other.ids.tobytes() for one, other in zip(first, second, strict=True)
    )


def test_where_a_reload_cannot_be_trusted_a_new_engine_starts(
    trained: Trained, stages: Stages, tmp_path: Path
) -> None:
    before, after = trained.before, trained.after
    stages.sample(before)
    blind = stages.sample(replace(after, version="no probe", probe=None))
    assert stages.started == 2 and "no probe" in stages.notes[-1]
    assert_same_samples(stages.sample(replace(after, version="no probe")), blind)

    wrong = replace(after, version="wrong folder", source=before.source)
    stages.use(wrong, lambda engine: None)
    assert stages.started == 3 and "nats on average" in stages.notes[-1]
    stages.use(replace(wrong, version="nothing new"), lambda engine: None)
    assert stages.started == 4 and "to the last bit" in stages.notes[-1]

    others = EngineSection(engine="vllm", batch_tokens=256)
    stages.use(replace(wrong, version="nothing new"), lambda engine: None, others)
    assert stages.started == 5 and "other settings" in stages.notes[-1]
    lost = replace(after, source=ModelSource(str(tmp_path / "lost"), None, False))
    with pytest.raises(ConfigError, match="lost"):
        stages.use(lost, lambda engine: None, others)
    assert "a new one starts" in stages.notes[-1] and str(tmp_path / "lost") in stages.notes[-1]
    told = len(stages.notes)
    stages.use(after, lambda engine: None, others)
    assert stages.started == 7 and len(stages.notes) == told, "an engine in doubt was kept"


def test_what_a_prefix_cache_has_of_old_weights_is_not_read(
    tmp_path_factory: pytest.TempPathFactory, stages: Stages
) -> None:
    prompts, responses = long_rows()
    trained = train(
        tmp_path_factory.mktemp, (prompts[:2], responses[:2]), max_position_embeddings=512
    )
    section = EngineSection(engine="vllm", vllm=VllmSection(prefix_caching=True))
    stages.max_tokens = 500
    for weights in (trained.before, trained.after):
        reference: Any = load_model(weights.source, dtype="float32", device="cpu")
        model = Tiny(Path(weights.source.location), reference)
        for _ in range(2):  # the second time the cache has the prompts
            samples = stages.use(weights, lambda e: generate(e, prompts, PLAIN, range(6)), section)
            for prompt, sample in zip(prompts, samples, strict=True):
                logprobs = reference_logprobs(model.logits(prompt, sample.ids), PLAIN)
                own = logprobs[np.arange(len(sample.ids)), sample.ids]
                np.testing.assert_allclose(sample.logprobs, own, atol=ATOL)
    assert stages.started == 1 and "replaced" in stages.notes[-2]
    signal = Signal(1)  # a probe's rows may be in the cache, for the engine has sampled them
    for _ in range(2):
        scores = stages.use(
            trained.after,
            lambda e: e.score(prompts, responses, signal=signal, vocab_size=V),
            section,
        )
        expected = reference_scores(model, prompts, responses, k=1, vocab_size=V)
        np.testing.assert_allclose(scores.token_logprob, expected.token_logprob, atol=ATOL)


def long_rows() -> Rows:
    """Return prompts that begin alike and fill whole blocks of a cache, with responses."""
    random = np.random.default_rng(5)
    begin, ends, responses = (random.integers(3, V, (6, n)).astype(np.int32) for n in (300, 8, 150))
    return [np.concatenate([begin[0], end]) for end in ends], list(responses)


def test_an_engine_of_a_stage_that_failed_is_not_kept(trained: Trained, stages: Stages) -> None:
    def fail(engine: Any) -> None:
        raise KeyError("a fault of the stage")

    with pytest.raises(KeyError):
        stages.use(trained.before, fail)
    stages.use(trained.before, lambda engine: None)
    assert stages.started == 2 and not stages.notes


def test_in_16_bits_an_engine_is_measured_by_its_own_rounding(
    trained: Trained, stages: Stages, tmp_path: Path
) -> None:
    before, after = (replace(w, dtype="bfloat16") for w in (trained.before, trained.after))
    stages.use(replace(before, version="imported", probe=None), lambda engine: None)
    stages.use(before, lambda engine: None)
    assert stages.started == 2 and "its own rounding is not known" in stages.notes[-1]
    found = stages.sample(after)
    assert stages.started == 2 and "replaced" in stages.notes[-1], stages.notes[-1]
    model: Any = load_model(after.source, dtype="float32", device="cpu")
    changed(model)
    export_folder(model, model.state_dict(), source=after.source, folder=tmp_path)
    wrong = replace(before, source=replace(after.source, location=str(tmp_path)))
    stages.use(wrong, lambda engine: None)
    assert stages.started == 3 and "on average would pass" in stages.notes[-1]
    stages.slot.close()
    assert_same_samples(found, fresh(after))


def test_the_next_adapter_takes_the_place_of_the_last(
    trained: Trained, stages: Stages, tmp_path: Path
) -> None:
    base = trained.before.source
    model = Tiny(Path(base.location), None)
    found = []
    for seed in (0, 1):
        tiny = adapted(model, tmp_path / str(seed), seed=seed)
        weights = weights_of(tiny.source, tiny.reference, str(seed), rows(6))
        for prompt, sample in zip(rows(12)[0], stages.sample(weights), strict=True):
            logprobs = reference_logprobs(tiny.logits(prompt, sample.ids), PLAIN)
            own = logprobs[np.arange(len(sample.ids)), sample.ids]
            np.testing.assert_allclose(sample.logprobs, own, atol=ATOL)
        found.append(weights)
    assert stages.started == 1 and "replaced" in stages.notes[-1]

    wider = adapted(model, tmp_path / "wider", r=12)
    other = weights_of(wider.source, wider.reference, "wider", rows(6))
    stages.use(other, lambda engine: None)
    assert stages.started == 2 and "cannot take the place" in stages.notes[-1]


@pytest.mark.parametrize(
    ("gap", "own", "dtype", "passes"),
    [
        (Gap(0.0, EXACT), None, "float32", True),
        (Gap(0.0, 2 * EXACT), None, "float32", False),
        (Gap(float("nan"), float("nan")), None, "float32", False),
        (Gap(RELOAD_FLOOR, 9.0), Gap(0.0, 0.0), "bfloat16", True),
        (Gap(0.05, 9.0), Gap(0.03, 9.0), "bfloat16", True),
        (Gap(0.07, 0.1), Gap(0.03, 9.0), "bfloat16", False),
        (Gap(1.1 * ROUNDED_MEAN, 0.1), Gap(1.0, 9.0), "float16", False),
        (Gap(float("nan"), float("nan")), Gap(0.03, 9.0), "float16", False),
    ],
    ids=str,
)
def test_a_gap_passes_up_to_what_the_number_format_explains(
    gap: Gap, own: Gap | None, dtype: str, passes: bool
) -> None:
    with nullcontext() if passes else pytest.raises(IdentityError, match="nats"):
        check_gap(gap, dtype, own)


# --- whole runs ---

KEEPING: dict[str, object] = {
    **{f"{section}.engine": "vllm" for section in ("rollout", "eval")},
    **{f"{section}.vllm.keep_between_stages": True for section in ("rollout", "eval")},
    "eval.teachers": False,
    "eval.max_new_tokens": 2 * MAX_NEW_TOKENS,
}
ROUNDS = "runs/tiny/rounds"


def test_a_run_that_keeps_its_engine_samples_what_others_do_and_outlives_it(
    tmp_path: Path, cli: Cli
) -> None:
    config = write_run(tmp_path, changes=KEEPING)
    with children_killed(f"{ROUNDS}/0000/train") as killed:
        outcome = cli("run", "-c", config, "--json")
    assert outcome.code == 0 and killed, outcome.stderr
    notes = [n for n in outcome.stderr.splitlines() if "engine" in n and "kept" in n]
    words = ("these weights already", "given up", "these weights already", "were replaced")
    assert len(notes) == 4 and all(w in n for w, n in zip(words, notes, strict=True)), notes
    started = [start_seconds(tmp_path, *stage) for stage in STAGES]
    assert [seconds > 0.0 for seconds in started] == [False, True, False, False]
    assert not engines(), "an engine was left behind"
    assert OWNER not in os.environ and os.environ["RANK"] == "0"  # the learner's, set in between

    storage = Storage(str(tmp_path / "store"))
    for stage in ("rollout", "eval"):  # each with a new engine, in this process
        folder = f"{ROUNDS}/0001/{stage}"
        kept = snapshot(storage, folder)
        shutil.rmtree(tmp_path / "store" / folder)
        assert cli.ok(stage, "-c", config, "--round", "1")["engine_start_s"] > 0.0
        assert snapshot(storage, folder) == kept and not engines()


def engines() -> list[str]:
    """Return the names of vLLM's processes that belong to this one."""
    names = [process.name() for process in psutil.Process().children(recursive=True)]
    return [name for name in names if name.startswith("VLLM")]


STAGES = (("rollout", 0), ("eval", 0), ("rollout", 1), ("eval", 1))


def start_seconds(folder: Path, stage: str, index: int) -> float:
    """Return how long the engine of a round's stage took to start."""
    times = folder / f"store/runs/tiny/metrics/times/{index:04d}"
    (path,) = times.glob(f"{stage}-*.parquet")
    (seconds,) = pq.read_table(path)["engine_start_s"].to_pylist()
    return float(seconds)
