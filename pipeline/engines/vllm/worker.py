"""What runs inside vLLM's workers: arrays of full logits, taken where the hidden states are.

vLLM hands out a prompt's log-probabilities as top-k alone, for every position and through Python
lists. This extension of its worker does the work of `work` at response positions only.
Promises: the function of the `hf` engine on logits of `chunk_tokens` positions at most; a prompt
that is computed in parts, or twice after preemption, gives each position once. Shapes: N positions
of one step, T positions of a row, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.engines.engine import Sampling
from pipeline.engines.vllm.work import OwnSample, Piece, Scoring, Work
from schemas.scoresignal import Signal

Packed = dict[str, tuple[str, list[int], bytes]]
"""Arrays by name: type, shape and bytes, for they cross a process border."""

JOB = "opd_job"
"""Name under which a request's `extra_args` say what is to be scored of it."""

LIMIT = "opd_vocab_size"
"""Name under which they say below which id is sampled."""


class SignalWorker:
    """Mixed into vLLM's worker class; its methods are called in every worker of an engine."""

    model_runner: Any

    def opd_prepare(self) -> None:
        """Make room for what the earlier layers send, where a model is split by layers.

        vLLM does so in a trial run, which 0.32 leaves out on a CPU, and ends at the first request.
        """
        from vllm.distributed import get_pp_group

        runner = self.model_runner
        if not get_pp_group().is_first_rank and runner.intermediate_tensors is None:
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens,
                dtype=runner.model_config.dtype,
                device=runner.device,
            )

    def opd_pack_heads(self) -> None:
        """Pack heads again after their weights were replaced.

        On a CPU vLLM packs a matrix for its kernel, and after a reload only where a file names it;
        of a tied head the file names the embedding alone.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
                module.quant_method.process_weights_after_loading(module)

    def opd_begin(self, words: dict[str, Any], vocab_size: int, chunk_tokens: int) -> str | None:
        """Collect a signal from now on; return what this vLLM lacks for it, or None.

        Args:
            words: the signal, as `Signal.words` gives it.
            vocab_size: ids that may enter the top-k.
            chunk_tokens: positions whose logits exist at once.
        """
        return self._begin(Scoring(Signal.of(words), vocab_size), chunk_tokens)

    def opd_begin_own(self, words: dict[str, Any], chunk_tokens: int) -> str | None:
        """Collect a student's own samples from now on; return what this vLLM lacks, or None.

        Args:
            words: the parameters, by the names of `Sampling`.
            chunk_tokens: positions whose logits exist at once.
        """
        return self._begin(OwnSample(Sampling(**words)), chunk_tokens)

    def _begin(self, work: Work, chunk_tokens: int) -> str | None:
        runner = self.model_runner
        missing = [name for name in _NEEDED if not hasattr(runner, name)]
        if missing:
            return f"{type(runner).__name__} has no {', '.join(missing)}"
        collector = getattr(runner, "opd_collector", None)
        if collector is None:
            collector = runner.opd_collector = _Collector(runner)
            runner._get_prompt_logprobs_dict = collector
        collector.begin(work, chunk_tokens)
        return None

    def opd_take(self, rows: list[int]) -> list[Packed]:
        """Return the signals of finished rows and forget them; empty where another worker has them.

        Args:
            rows: numbers that the rows' jobs gave.
        """
        found: list[Packed] = self.model_runner.opd_collector.take(rows)
        return found


_NEEDED = ("_get_prompt_logprobs_dict", "requests", "input_batch", "query_start_loc", "model")


class _Collector:
    """Stands in for the model runner's method that gathers prompt log-probabilities each step."""

    def __init__(self, runner: Any) -> None:
        self._runner, self._original = runner, runner._get_prompt_logprobs_dict
        self._parts: dict[int, list[tuple[int, dict[str, NDArray[Any]]]]] = {}

    def begin(self, work: Work, chunk_tokens: int) -> None:
        """Do other work from now on."""
        self._work, self._chunk = work, chunk_tokens

    def __call__(self, hidden_states: Tensor, num_scheduled_tokens: dict[str, int]) -> Any:
        """Collect what a step computed, then do what vLLM does."""
        pieces = self._pieces(num_scheduled_tokens)
        if pieces:
            self._collect(pieces, hidden_states)
        return self._original(hidden_states, num_scheduled_tokens)

    def take(self, rows: Sequence[int]) -> list[Packed]:
        """Return the signals of rows, each position once, and forget them."""
        return [_packed(_joined(self._parts.pop(row))) for row in rows if row in self._parts]

    def _pieces(self, num_scheduled_tokens: Mapping[str, int]) -> list[Piece]:
        runner, pieces = self._runner, []
        for name, num_tokens in num_scheduled_tokens.items():
            request = runner.requests[name]
            job = (request.sampling_params.extra_args or {}).get(JOB)
            if job is None:
                continue
            done, before = request.num_computed_tokens, int(job["prompt"]) - 1
            low = max(done, before)
            ids = request.prompt_token_ids
            if "after" in job:
                ids = [*ids, *job["after"]]
            high = min(done + num_tokens, len(ids) - 1)
            if low < high:
                index = runner.input_batch.req_id_to_index[name]
                offset = int(runner.query_start_loc.np[index]) + low - done
                pieces.append(Piece(job, ids, low - before, high - low, offset))
        return pieces

    @torch.inference_mode()
    def _collect(self, pieces: list[Piece], hidden_states: Tensor) -> None:
        device = hidden_states.device
        index = np.concatenate([np.arange(p.offset, p.offset + p.tokens) for p in pieces])
        states_NH = hidden_states[torch.from_numpy(index).to(device)]
        targets_N = torch.from_numpy(np.concatenate([p.targets() for p in pieces])).to(device)
        inputs = {
            name: torch.from_numpy(values).to(device)
            for name, values in self._work.inputs(pieces).items()
        }
        found: list[dict[str, Tensor]] = []
        for first in range(0, len(index), self._chunk):
            chunk = slice(first, first + self._chunk)
            logits_NV = self._runner.model.compute_logits(states_NH[chunk])
            if logits_NV is None:  # another worker of a tensor-parallel group gathers them
                return
            given = {name: values[chunk] for name, values in inputs.items()}
            arrays = self._work.arrays(logits_NV, targets_N[chunk], given)
            found.append({name: value.cpu() for name, value in arrays.items()})
        joined = {name: torch.cat([part[name] for part in found]).numpy() for name in found[0]}
        end = 0
        for piece in pieces:
            begin, end = end, end + piece.tokens
            part = {name: values[begin:end] for name, values in joined.items()}
            self._parts.setdefault(int(piece.job["row"]), []).append((piece.start, part))


def _joined(parts: list[tuple[int, dict[str, NDArray[Any]]]]) -> dict[str, NDArray[Any]]:
    """Return the parts in the order of their positions; of one computed twice, the later."""
    total = max(start + len(part["token_logprob"]) for start, part in parts)
    held = np.zeros(total, dtype=bool)
    whole = {n: np.zeros((total, *v.shape[1:]), v.dtype) for n, v in parts[0][1].items()}
    for start, part in parts:
        place = slice(start, start + len(part["token_logprob"]))
        held[place] = True
        for name, values in part.items():
            whole[name][place] = values
    return {name: values[held] for name, values in whole.items()}  # short where one is missing


def _packed(arrays: Mapping[str, NDArray[Any]]) -> Packed:
    return {n: (v.dtype.str, list(v.shape), v.tobytes()) for n, v in arrays.items()}
