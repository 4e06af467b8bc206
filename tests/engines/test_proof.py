"""What is refused before a stage samples: engines whose draws their own scores do not bear out."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.checkpoints.probe import Probe
from pipeline.engines import proof, reach
from pipeline.engines.engine import Engine, Sample, Sampling
from pipeline.engines.opening import open_engine
from pipeline.engines.proof import drawn_gap, proved_engine
from pipeline.engines.reach import reach_of
from pipeline.engines.start import Note, Start
from pipeline.models.source import ModelSource
from pipeline.scores.scores import Scores
from schemas.columns import Ids
from schemas.config.engines import EngineSection
from schemas.errors import CapacityError, ConfigError
from tests.support.kinds import make_kind
from tests.support.tiny import make_model


@dataclass
class _Changed:
    """An engine that another one's numbers pass through."""

    engine: Engine
    name: str = "vllm"
    by: float = 0.0
    """Nats that are added to what is drawn of rows that others ended beside."""
    full: int = 0
    """How often memory runs out before it does not."""
    by_length: tuple[int, float] = (0, 0.0)
    """Nats that are added to what is drawn of rows of more tokens than the first says."""
    asked: list[list[int]] = field(default_factory=list)
    closed: bool = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def generate(self, prompts: Any, seeds: Any, sampling: Sampling) -> list[Sample]:
        if self.full:
            self.full -= 1
            raise CapacityError("full")
        self.asked.append([len(prompt) for prompt in prompts])
        samples = self.engine.generate(prompts, seeds, sampling)
        for sample in samples if sampling.stop_token_ids else []:
            sample.logprobs[1:] += self.by
        least, more = self.by_length
        for prompt, sample in zip(prompts, samples, strict=True):
            sample.logprobs[1:] += more * (len(prompt) > least)
        return samples

    def score(self, prompts: Any, responses: Any, **given: Any) -> Scores:
        return self.engine.score(prompts, responses, **given)

    def close(self) -> None:
        self.closed = True
        self.engine.close()


def start_of(source: ModelSource, *, max_tokens: int = 60) -> Start:
    section = EngineSection(device="cpu", batch_tokens=4096, logit_chunk_mb=0.01)
    return Start(source, section, dtype="float32", use="sample", max_tokens=max_tokens)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """Return a model whose windows are of 16 tokens."""
    return make_kind(tmp_path_factory.mktemp("windows"), "Mistral", sliding_window=16)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[_Changed]:
    """Return a place: the changes in it pass on the engines that are opened."""
    changes: list[_Changed] = []

    def give(start: Start, note: Note) -> Engine:
        changes[0].engine = open_engine(start, note)
        return changes[0]

    monkeypatch.setattr(proof, "open_engine", give)
    return changes


def changed(opened: list[_Changed], **settings: Any) -> _Changed:
    opened.append(_Changed(None, **settings))  # type: ignore[arg-type] # until it is opened
    return opened[0]


def test_rows_of_several_lengths_are_drawn_twice_up_to_the_windows_end(
    source: ModelSource, opened: list[_Changed]
) -> None:
    engine = changed(opened)
    assert proved_engine(start_of(source), print) is engine
    assert engine.asked == [[3, 3, 8, 15], [3, 3, 8, 15], [56, 3]] and not engine.closed


@pytest.mark.parametrize(
    ("max_tokens", "lengths", "longest"), [(18, [3, 3, 8], 14), (9, [3, 3], 5), (6, [], 2)]
)
def test_the_longest_row_is_as_long_as_the_stage_may_ask(
    source: ModelSource,
    opened: list[_Changed],
    max_tokens: int,
    lengths: list[int],
    longest: int,
) -> None:
    engine = changed(opened)
    proved_engine(start_of(source, max_tokens=max_tokens), print)
    assert engine.asked == ([lengths] * 2 if lengths else []) + [[longest, min(3, longest)]]


@pytest.mark.parametrize("far", [True, False])
def test_a_fault_of_the_longest_row_alone_is_found_where_that_row_is_cheap(
    far: bool, tmp_path: Path, opened: list[_Changed], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = changed(opened, by_length=(900, 0.5))
    if not far:
        monkeypatch.setattr(reach, "CPU_COST", 0)
    start = start_of(make_kind(tmp_path, "Mistral", max_position_embeddings=2000), max_tokens=1000)
    if far:
        with pytest.raises(ConfigError, match=r"its draws are .*5\.0e-01 at most"):
            proved_engine(start, print)
        return
    proved_engine(start, print)
    assert max(map(max, engine.asked)) == 8 and reach_of(start).words() == (
        "rows above 40 tokens are not tried, and 1000 are allowed"
    )


@pytest.mark.parametrize("by", [2e-3, -2e-3, np.nan])
def test_draws_that_differ_where_a_row_ended_beside_them_are_refused(
    source: ModelSource, opened: list[_Changed], by: float
) -> None:
    engine = changed(opened, by=by)
    with pytest.raises(ConfigError, match=r"'vllm' cannot sample .* 1\.0e-03 at most would pass"):
        proved_engine(start_of(source), print)
    assert engine.closed


def test_less_is_tried_where_memory_runs_out(source: ModelSource, opened: list[_Changed]) -> None:
    engine = changed(opened, full=2)
    proved_engine(start_of(source), print)
    assert len(engine.asked) == 3
    opened.clear()
    assert not changed(opened, full=99).closed
    with pytest.raises(CapacityError):
        proved_engine(start_of(source), print)
    assert opened[0].closed


@pytest.mark.parametrize(("name", "refused"), [("vllm", True), ("hf", False)])
def test_other_engines_are_held_against_the_checkpoints_probe(
    source: ModelSource, opened: list[_Changed], name: str, refused: bool
) -> None:
    changed(opened, name=name)
    probe = Probe(prompt_ids=((5, 6, 7),), response_ids=((8, 9),), logprobs=((-1.0, -50.0),))
    if refused:
        with pytest.raises(ConfigError, match="away from transformers'"):
            proved_engine(start_of(source), print, probe=probe)
    else:
        proved_engine(start_of(source), print, probe=probe)


def test_a_cache_that_is_not_read_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.engines.hf.stepping import Stepper

    model = ModelSource(str(make_model(tmp_path / "m", initializer_range=0.4)), None, False)
    engine = open_engine(start_of(model), print)
    prompts: list[Ids] = [np.array([3, 4, 5], np.int32), np.array([6, 7, 8], np.int32)]
    assert drawn_gap(engine, prompts, 4).max < 1e-5
    plain = Stepper.next_states

    def forgetful(self: Stepper, ids_BT: torch.Tensor, mask_BT: torch.Tensor, cache: Any) -> Any:
        return plain(self, ids_BT, mask_BT[:, -ids_BT.shape[1] :], self.begin())

    monkeypatch.setattr(Stepper, "next_states", forgetful)
    assert drawn_gap(engine, prompts, 4).max > 0.1
