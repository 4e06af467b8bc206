"""One start of vLLM: its settings, its request loop, calls into its workers, its end.

Promises: an engine on a CPU leaves this process as it found it (environment, random state, torch's
functions, process group), for the learner may run here next. Nothing of vLLM is imported before
its environment is set.
"""

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch

from pipeline.engine import Ids
from pipeline.lazyengine import capacity
from pipeline.models import ModelSource
from pipeline.parentage import find_orphans, owner_mark
from pipeline.vllmadapter import NAME, Held
from pipeline.vllmarguments import executor_argument, model_arguments, worker_environment
from pipeline.vllmtraces import ProcessState, collected_once, quiet, unprinted
from pipeline.vllmworker import Packed
from schemas.enginesections import EngineSection
from schemas.errors import CapacityError, ConfigError
from schemas.scoresignal import Signal

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # CUDA may have been looked at here: no fork then
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # `vllmworker` reads the hidden states of the first one
}
"""What vLLM is told unless the user said otherwise."""

OWN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"
"""Variable that gives vLLM's engine a process of its own; by default on GPUs only."""


class VllmHost:
    """A running vLLM."""

    _llm: Any = None

    def __init__(
        self,
        held: Held,
        *,
        dtype: str,
        settings: EngineSection,
        max_tokens: int | None,
        tokenizer: ModelSource | None,
        batch_tokens: int,
    ) -> None:
        """Start it; with the tokenizer at a place, where stop strings are asked for.

        Raises:
            ConfigError: vLLM cannot run the model.
            CapacityError: the model does not fit.
        """
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault(OWN_PROCESS, "1" if torch.cuda.is_available() else "0")
        apart = os.environ[OWN_PROCESS] == "1"
        if apart:
            os.environ.update(owner_mark())
        self._found = ProcessState()
        self._signal: tuple[Any, ...] | None = None
        self._count = 0
        arguments = {
            **model_arguments(
                held.source,
                dtype=dtype,
                settings=settings,
                max_tokens=max_tokens,
                batch_tokens=batch_tokens,
                tokenizer=tokenizer,
            ),
            "worker_extension_cls": "pipeline.vllmworker.SignalWorker",
            "logits_processors": ["pipeline.vllmmask:VocabularyMask"],
            "use_tqdm_on_load": False,
            **held.arguments,
        }
        if apart:
            arguments |= executor_argument(arguments)
        for name, value in worker_environment(arguments).items():
            os.environ.setdefault(name, value)
        self._adapter = held.adapter
        try:
            with quiet(), _explained(held.source), unprinted(shown=apart), collected_once():
                self._open(arguments)
        except BaseException:
            self._clean_up()
            raise
        self.vocab_size = int(self._llm.model_config.get_vocab_size())
        self.context_length = int(self._llm.model_config.max_model_len)

    def _open(self, arguments: dict[str, Any]) -> None:
        from vllm import LLM, SamplingParams

        self._llm = LLM(**arguments)
        self._llm.collective_rpc("opd_prepare")
        first = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False)
        probe = [np.zeros(1, dtype=np.int32)]
        self.run(probe, [first], lambda row, output: None)  # some models fail only here

    def _clean_up(self) -> None:
        """Leave the process as it was after a start that failed."""
        with quiet(), self._found.group_kept(), collected_once():
            if self._llm is not None:
                self._llm.llm_engine.engine_core.shutdown()
                self._llm = None
            if "vllm.distributed" in sys.modules:
                from vllm.distributed import cleanup_dist_env_and_memory

                cleanup_dist_env_and_memory()
        self._found.restore()

    def run(
        self, prompts: Sequence[Ids], params: Sequence[Any], finished: Callable[[int, Any], None]
    ) -> None:
        """Do requests to their end.

        Args:
            prompts: ids of each request.
            params: vLLM's sampling parameters of each.
            finished: told the index of a request and vLLM's output, in any order.
        """
        engine, base, adapter = self._llm.llm_engine, self._count, self._lora_request()
        self._count += len(prompts)
        with quiet():
            names = []
            try:
                for row, (ids, each) in enumerate(zip(prompts, params, strict=True)):
                    names.append(str(base + row))
                    prompt = {"prompt_token_ids": ids.tolist()}
                    engine.add_request(names[-1], prompt, each, lora_request=adapter)
                while engine.has_unfinished_requests():
                    for output in engine.step():
                        finished(int(output.request_id) - base, output)
            except BaseException:
                with suppress(Exception):  # an engine that died cannot be told
                    engine.abort_request(names)
                raise

    def _lora_request(self) -> Any:
        """Return what names the adapter to vLLM, or None where there is none."""
        if self._adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest(NAME, 1, self._adapter)

    def collect(self, signal: Signal, vocab_size: int, chunk_tokens: int) -> None:
        """Let the workers collect a signal of the requests that come.

        Raises:
            ConfigError: this version of vLLM has other insides.
        """
        wanted = (signal.words(), vocab_size, chunk_tokens)
        if wanted == self._signal:
            return
        lacking = [text for text in self._llm.collective_rpc("opd_begin", args=wanted) if text]
        if lacking:
            raise ConfigError(
                f"this version of vLLM cannot give exact scores ({lacking[0]}): install vllm "
                "0.32.0, or set score.engine to 'hf'"
            )
        self._signal = wanted

    def take(self, rows: Sequence[int]) -> list[Packed]:
        """Return the signals of finished rows and forget them."""
        found = self._llm.collective_rpc("opd_take", args=(list(rows),))
        return max(found, key=len) if rows else []

    def close(self) -> None:
        """End it and leave the process as it was."""
        with quiet(), self._found.group_kept(), collected_once():
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
        self._found.restore()


@contextmanager
def _explained(source: ModelSource) -> Iterator[None]:
    """Turn what vLLM raises at its start into errors that say who must act."""
    try:
        with capacity(f"starting vLLM with {source.location}"):
            yield
    except (OSError, ValueError, NotImplementedError, RuntimeError, AssertionError) as error:
        traceback.clear_frames(error.__traceback__)  # they hold what was half made
        words = str(error).strip() or type(error).__name__
        orphans = ", ".join(str(orphan.pid) for orphan in find_orphans())
        if orphans:
            words += (
                f". Processes {orphans} belong to engines whose opd is gone and may hold the "
                "memory: `opd doctor` says more"
            )
        if "memory" in words.lower():
            raise CapacityError(f"vLLM cannot start with {source.location}: {words}") from error
        raise ConfigError(f"vLLM cannot run the model {source.location}: {words}") from error
