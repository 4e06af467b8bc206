"""The `hf` engine: transformers on CPU or GPU, the reference that other engines are held against.

Promises: full-vocabulary logits take `logit_chunk_mb` at most; rows are batched by length under a
token budget. Shapes: B rows, T tokens, V vocabulary.
"""

import gc
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.engines.engine import Sample, Sampling
from pipeline.engines.hf.record import Record
from pipeline.engines.hf.sampling import draw, own_uniforms, processed_logprobs
from pipeline.engines.hf.stepping import Stepper
from pipeline.engines.hf.textends import BatchReading
from pipeline.engines.memory import capacity, empty_device, free_weights
from pipeline.engines.reach import reach_of
from pipeline.engines.rotary import border_of
from pipeline.engines.start import Start
from pipeline.models.head import check_head, decoder_of, head_of, rows_in
from pipeline.models.loading import load_model, pick_device
from pipeline.models.own.attention import require_agreement
from pipeline.models.own.causality import require_causality
from pipeline.models.own.experts import require_same_experts
from pipeline.models.padding import length_batches, padded, response_positions
from pipeline.models.stopstrings import ModelStops
from pipeline.scores.scores import Scores
from pipeline.scores.signals import score_signals, signal_uniforms
from pipeline.store import interrupts
from schemas.columns import Ids
from schemas.fingerprint import sequence_digest
from schemas.randomness import uniforms
from schemas.scoresignal import Signal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CPU_NUMBERS, CPU_TOKENS = 1 << 17, 256
"""Numbers of a hidden state that are scored at once on a CPU: its caches hold no more; and tokens
that are in any case, for products of fewer rows are slow."""


class HfEngine:
    """A transformers model held in memory."""

    name = "hf"

    def __init__(self, start: Start, *, version: str) -> None:
        """Load the model and make sure that its head is understood.

        Args:
            start: the model and its settings.
            version: the versions that its numbers depend on.
        """
        self.version, section = version, start.section
        self._model = _model(start)
        self._head = head_of(self._model)
        self._batch_tokens = section.batch_tokens
        self._stops = ModelStops(start.source)
        config = self._model.config.get_text_config()
        self.vocab_size = int(self._head.weight_VH.shape[0])
        self._chunk_rows = min(rows_in(section.logit_chunk_mb, self.vocab_size), self._batch_tokens)
        self.context_length = int(getattr(config, "max_position_embeddings", 2**31))
        probe = torch.arange(min(4, self.vocab_size), device=self._model.device)[None]
        check_head(self._model, self._head, probe)
        require_causality(self._model, start.source)
        require_agreement(self._model, start.source, tokens=reach_of(start).compared)
        require_same_experts(self._model, start.source)
        self._stepper = Stepper(self._model, self._head, start.dtype)
        self._border = border_of(self._model.config)

    def generate(
        self, prompts: Sequence[Ids], seeds: Sequence[int], sampling: Sampling
    ) -> list[Sample]:
        """Return one response per prompt, each drawn with its own seed."""
        sampling.check_vocabulary(self.vocab_size)
        lengths = np.array([len(p) for p in prompts])
        samples: list[Sample | None] = [None] * len(prompts)
        whole = lengths + sampling.max_new_tokens
        if self._border is not None:
            self._border.check(int(whole.max()))
        kinds = None if self._stepper.pads else whole
        for rows in length_batches(whole, self._batch_tokens, kinds=kinds):
            mine, steps = [seeds[i] for i in rows], sampling.max_new_tokens
            random = uniforms(np.array(mine), steps)
            own = own_uniforms(mine, steps) if sampling.sample else random
            with capacity("sampling"):
                both = torch.from_numpy(np.stack([random, own]))
                batch = self._generate([prompts[i] for i in rows], both, sampling)
            for row, sample in zip(rows, batch, strict=True):
                samples[row] = sample
        return [s for s in samples if s is not None]

    def score(
        self,
        prompts: Sequence[Ids],
        responses: Sequence[Ids],
        *,
        signal: Signal,
        vocab_size: int,
        candidates: Sequence[Ids] | None = None,
    ) -> Scores:
        """Return scores of every response token, rows joined in the given order."""
        tokens = np.array([len(r) for r in responses])
        starts = np.concatenate([[0], np.cumsum(tokens)])
        total = np.array([len(p) for p in prompts]) + tokens
        parts: list[dict[str, Tensor]] = []
        order: list[NDArray[np.int64]] = []
        kinds = None if self._border is None else self._border.sides(total)
        budget = self._batch_tokens
        if self._model.device.type == "cpu":
            budget = min(budget, max(CPU_TOKENS, CPU_NUMBERS // self._head.weight_VH.shape[1]))
        for rows in length_batches(total, budget, kinds=kinds):
            batch = [
                _Row(prompts[i], responses[i], None if candidates is None else candidates[i])
                for i in rows
            ]
            with capacity("scoring"):
                parts.extend(self._score(batch, signal=signal, vocab_size=vocab_size))
            order.extend(np.arange(starts[i], starts[i + 1]) for i in rows)
        return _in_order(parts, np.concatenate(order))

    def shrink(self) -> bool:
        """Halve the tokens of a forward pass and of its logits; return whether that was left."""
        if self._batch_tokens == self._chunk_rows == 1:
            return False
        self._batch_tokens = max(1, self._batch_tokens // 2)
        self._chunk_rows = max(1, self._chunk_rows // 2)
        gc.collect()
        empty_device()
        return True

    def close(self) -> None:
        """Give the model's memory back."""
        free_weights(self._model)
        del self._model, self._head, self._stepper

    @torch.inference_mode()
    def _score(
        self, batch: list["_Row"], *, signal: Signal, vocab_size: int
    ) -> Iterator[dict[str, Tensor]]:
        rows = [np.concatenate([row.prompt, row.response]) for row in batch]
        ids_BT, mask_BT = padded(rows, self._model.device, left=False)
        hidden = decoder_of(self._model)(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
        prompt_tokens = np.array([len(row.prompt) for row in batch])
        response_tokens = np.array([len(row.response) for row in batch])
        before = response_positions(prompt_tokens, response_tokens).to(ids_BT.device)
        states_TH = hidden.last_hidden_state[before[0], before[1]]
        tokens_T = ids_BT[before[0], before[1] + 1]
        candidates_TN = _candidates(batch, signal, states_TH.device)
        uniforms_TD = _uniforms(batch, signal, states_TH.device)
        for chunk in self._chunks(len(tokens_T)):
            interrupts.beat()
            signals = score_signals(
                self._head.logits(states_TH[chunk]),
                tokens_T[chunk],
                signal=signal,
                vocab_size=vocab_size,
                candidates_TN=None if candidates_TN is None else candidates_TN[chunk],
                uniforms_TD=None if uniforms_TD is None else uniforms_TD[chunk],
            )
            yield {name: value.cpu() for name, value in signals.items()}

    @torch.inference_mode()
    def _generate(self, prompts: list[Ids], random_2BN: Tensor, sampling: Sampling) -> list[Sample]:
        device = self._model.device
        ids_BT, mask_BT = padded(prompts, device, left=True)
        uniform_BN, own_BN = random_2BN.to(device)
        stops = torch.tensor(sampling.stop_token_ids, device=device)
        alive = torch.arange(len(prompts), device=device)
        record = Record(uniform_BN.shape, sampling, device)
        texts, cache, current = self._texts(prompts, sampling), self._stepper.begin(), ids_BT
        for step in range(sampling.max_new_tokens):
            interrupts.beat()
            states_BH = self._stepper.next_states(current, mask_BT, cache)
            parts = []
            for chunk in self._chunks(len(alive)):
                logits_BV, rows = self._head.logits(states_BH[chunk]), alive[chunk]
                ids_B, logprobs_BV = self._choose(logits_BV, uniform_BN[rows, step], sampling)
                record.put(step, rows, ids_B, logprobs_BV, own_BN[rows, step])
                parts.append(ids_B)
            ids_B = torch.cat(parts)
            ended_B = torch.isin(ids_B, stops)
            if texts is not None:
                ended_B |= texts.ended(alive, record.so_far(step))
            record.stop(alive[ended_B])
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(alive), 1)], dim=1)
            current = ids_B[:, None]
            if bool(ended_B.any()):
                keep = (~ended_B).nonzero()[:, 0]
                if not len(keep):
                    break
                cache.reorder_cache(keep)
                alive, mask_BT, current = alive[keep], mask_BT[keep], current[keep]
        return record.samples()

    def _chunks(self, count: int) -> list[slice]:
        """Return so many rows in pieces whose logits may exist at once."""
        return [slice(at, at + self._chunk_rows) for at in range(0, count, self._chunk_rows)]

    def _texts(self, prompts: list[Ids], sampling: Sampling) -> BatchReading | None:
        """Return what reads the responses' texts, or None where they do not matter."""
        strings = self._stops.of(sampling.stop_strings)
        return None if strings is None else BatchReading(strings, prompts, self._model.device)

    def _choose(
        self, logits_BV: Tensor, uniform_B: Tensor, sampling: Sampling
    ) -> tuple[Tensor, Tensor]:
        logprobs_BV = processed_logprobs(
            logits_BV[:, : sampling.vocab_size],
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
        )
        greedy = sampling.temperature == 0.0
        ids_B = logprobs_BV.argmax(-1) if greedy else draw(logprobs_BV, uniform_B)
        return ids_B, logprobs_BV


def _model(start: Start) -> "PreTrainedModel":
    device, loaded = start.section.device, cast(Any, start.model)  # types of `to` lack devices
    if loaded is not None:
        return cast("PreTrainedModel", loaded.to(pick_device(device)))
    return load_model(start.source, dtype=start.dtype, device=device)


def _in_order(parts: list[dict[str, Tensor]], place_T: NDArray[np.int64]) -> Scores:
    """Return the scores of all parts, each token where it belongs."""
    found: dict[str, NDArray[Any]] = {}
    for name, first in parts[0].items():
        values = found[name] = np.empty((len(place_T), *first.shape[1:]), first.numpy().dtype)
        at = 0
        for part in parts:
            values[place_T[at : at + len(part[name])]] = part[name].numpy()
            at += len(part[name])
    return Scores.of(found)


class _Row(NamedTuple):
    """A sequence to be scored."""

    prompt: Ids
    response: Ids
    candidates: Ids | None


def _candidates(batch: list[_Row], signal: Signal, device: torch.device) -> Tensor | None:
    if not signal.candidates:
        return None
    parts = [row.candidates for row in batch if row.candidates is not None]
    return torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(device)


def _uniforms(batch: list[_Row], signal: Signal, device: torch.device) -> Tensor | None:
    """Return the random numbers of a batch's positions, or None where the signal needs none."""
    if not (signal.draws or signal.sample):
        return None
    digests = [sequence_digest(row.prompt, row.response) for row in batch]
    lengths = [len(row.response) for row in batch]
    parts = [signal_uniforms(d, n, signal) for d, n in zip(digests, lengths, strict=True)]
    numbers = np.concatenate([part for part in parts if part is not None])
    return torch.from_numpy(numbers).to(device)
