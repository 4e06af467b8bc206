"""One start of vLLM: its settings, its request loop, calls into its workers, its end.

Promises: an engine on a CPU leaves this process as it found it (environment, random state, torch's
functions, process group), for the learner may run here next; one that is kept between stages has
processes of its own everywhere, for the learner runs beside it. Nothing of vLLM is imported before
its environment is set.
"""

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any

import numpy as np
import torch

from pipeline.engines.memory import capacity
from pipeline.engines.processes import Offspring, find_orphans, owner_mark
from pipeline.engines.start import Start
from pipeline.engines.vllm.adapter import NAME, Held
from pipeline.engines.vllm.arguments import executor_argument, model_arguments, worker_environment
from pipeline.engines.vllm.processstate import ProcessState, collected_once, quiet, unprinted
from pipeline.engines.vllm.refusals import cannot_run
from pipeline.engines.vllm.worker import Packed
from pipeline.models.border import reason_of
from pipeline.models.source import ModelSource
from pipeline.store import interrupts
from pipeline.store.disk.scratch import disk_fault, full_disk
from schemas.columns import Ids
from schemas.errors import CapacityError, ConfigError, OpdError

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # CUDA may have been looked at here: no fork then
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # `vllmworker` reads the hidden states of the first one
}
"""What vLLM is told unless the user said otherwise."""

REASON_CHARS = 2000
"""Characters that are shown of what vLLM says; its reason is rarely in the first line."""

LOOK_S = 5.0
"""Seconds of silence after which it is seen whether vLLM's process is alive."""

OWN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"
"""Variable that gives vLLM's engine a process of its own; by default on GPUs only."""


class VllmHost:
    """A running vLLM."""

    _llm: Any = None

    def __init__(self, start: Start, held: Held, *, batch_tokens: int) -> None:
        """Start it.

        Args:
            start: what it starts with.
            held: what it holds of the model.
            batch_tokens: most tokens of a forward pass.

        Raises:
            ConfigError: vLLM cannot run the model.
            CapacityError: the model does not fit.
        """
        self._adapter_arguments = held.arguments
        self._stays = start.section.vllm.keep_between_stages
        arguments = model_arguments(start, held.source, batch_tokens=batch_tokens)
        apart = self._prepare()
        self._wanted: tuple[Any, ...] | None = None
        self._count = 0
        arguments |= {
            "worker_extension_cls": "pipeline.engines.vllm.worker.SignalWorker",
            "logits_processors": ["pipeline.engines.vllm.mask:VocabularyMask"],
            "use_tqdm_on_load": False,
            **self._adapter_arguments,
        }
        if apart:
            arguments |= executor_argument(arguments)
        for name, value in worker_environment(arguments).items():
            os.environ.setdefault(name, value)
        self._adapter, self._adapter_id = held.adapter, 1
        self._offspring = Offspring()
        try:
            with quiet(), _explained(held.source), unprinted(shown=apart), collected_once():
                self._open(arguments)
        except BaseException:
            self._clean_up()
            raise
        self._offspring.note()
        if self._stays:  # what runs here from now on is none of its own
            self._found.restore()
        self.vocab_size = int(self._llm.model_config.get_vocab_size())
        self.context_length = int(self._llm.model_config.max_model_len)

    def _prepare(self) -> bool:
        """Set vLLM's environment; return whether it gets a process of its own."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault(OWN_PROCESS, "1" if torch.cuda.is_available() else "0")
        self._found = ProcessState()
        if self._stays:
            os.environ[OWN_PROCESS] = "1"
        apart = os.environ[OWN_PROCESS] == "1"
        if apart:
            os.environ.update(owner_mark())
        return apart

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

        Raises:
            CapacityError: a process of vLLM ended.
        """
        engine, base, adapter = self._llm.llm_engine, self._count, self._lora_request()
        self._count += len(prompts)
        with quiet(), _living():
            names = []
            try:
                for row, (ids, each) in enumerate(zip(prompts, params, strict=True)):
                    names.append(str(base + row))
                    prompt = {"prompt_token_ids": ids.tolist()}
                    engine.add_request(names[-1], prompt, each, lora_request=adapter)
                while engine.has_unfinished_requests():
                    interrupts.beat()
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

        return LoRARequest(NAME, self._adapter_id, self._adapter)

    def reload(self, held: Held) -> None:
        """Take other weights of the same shapes, and forget what was computed with the old ones.

        Raises:
            ConfigError: it was started for another adapter, or one that was merged.
        """
        if held.arguments != self._adapter_arguments:
            raise ConfigError(
                f"{held.adapter or held.source.location} cannot take the place of what vLLM holds: "
                f"it was started with {self._adapter_arguments or 'no adapter'}"
            )
        with quiet(), collected_once():
            if held.adapter is None:
                self._ask("reload_weights", kwargs={"weights_path": held.source.location})
                self._ask("opd_pack_heads")
            else:  # read with the next request, for it has a new number
                self._adapter, self._adapter_id = held.adapter, self._adapter_id + 1
            if not self._llm.reset_prefix_cache():
                raise ConfigError("vLLM's key-value cache could not be emptied: it is in use")

    def collect(self, method: str, *wanted: Any) -> None:
        """Let the workers collect arrays of the requests that come.

        Args:
            method: of `worker.SignalWorker`, which begins the work.
            wanted: its arguments.

        Raises:
            ConfigError: this version of vLLM has other insides.
        """
        if (method, *wanted) == self._wanted:
            return
        lacking = [text for text in self._ask(method, args=wanted) if text]
        if lacking:
            raise ConfigError(
                f"this version of vLLM does not show its logits ({lacking[0]}): install vllm "
                "0.32.0, or set the engine of rollout and score to 'hf'"
            )
        self._wanted = (method, *wanted)

    def take(self, rows: Sequence[int]) -> list[Packed]:
        """Return the signals of finished rows and forget them."""
        found = self._ask("opd_take", args=(list(rows),))
        return max(found, key=len) if rows else []

    def _ask(self, method: str, **given: Any) -> list[Any]:
        """Return what the workers answer; end the wait where their process does.

        vLLM itself waits for ever for the answer of a process that has died.

        Raises:
            CapacityError: it did.
        """
        core = self._llm.llm_engine.engine_core
        if not hasattr(core, "ensure_alive"):  # it is this process
            return list(self._llm.collective_rpc(method, **given))
        answer: Future[list[Any]] = Future()

        def ask() -> None:
            try:
                answer.set_result(self._llm.collective_rpc(method, **given))
            except BaseException as error:
                answer.set_exception(error)

        Thread(target=ask, daemon=True).start()
        with _living():
            while not wait([answer], LOOK_S).done:
                core.ensure_alive()
                interrupts.check()
            return answer.result()

    def close(self) -> None:
        """End it and leave the process as it was; a second time, do nothing."""
        if self._llm is None:
            return
        with quiet(), self._found.group_kept(), collected_once():
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
        self._offspring.await_end()
        if not self._stays:
            self._found.restore()


@contextmanager
def _living() -> Iterator[None]:
    """Say what to do where a process of vLLM ends while it is asked for something."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "EngineDeadError":  # to import it would import vLLM
            raise
        raise CapacityError(
            "vLLM's engine process ended on its own; its last words, if any, are above. Memory is "
            "the usual cause: lower batch_tokens or vllm.kv_cache_gb of the stage's section. Run "
            "the same command again to resume"
        ) from error


@contextmanager
def _explained(source: ModelSource) -> Iterator[None]:
    """Turn what vLLM raises at its start into errors that say who must act."""
    try:
        with capacity(f"starting vLLM with {source.location}"):
            yield
    except OpdError:
        raise
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # they hold what was half made
        words = reason_of(error, most=REASON_CHARS)
        is_full = "memory" in words.lower()  # before words of ours are added
        orphans = ", ".join(str(orphan.pid) for orphan in find_orphans())
        if orphans:
            words += (
                f". Processes {orphans} belong to engines whose opd is gone and may hold the "
                "memory: `opd doctor` says more"
            )
        if fault := disk_fault(error):
            raise full_disk(fault, error) from error
        if is_full:
            raise CapacityError(f"vLLM cannot start with {source.location}: {words}") from error
        # whole files that transformers loads: vLLM has no place for them
        raise ConfigError(cannot_run(source.location, words)) from error
