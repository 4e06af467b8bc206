"""What an engine must give, from its definition: full forwards of one row at a time, in float64."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from pipeline.engines.engine import Engine, Sample, Sampling
from pipeline.engines.opening import open_engine
from pipeline.engines.start import Start
from pipeline.models.source import ModelSource
from pipeline.quickstart.addition import EOS, VOCABULARY
from pipeline.scores.scores import Scores
from schemas.columns import Ids
from schemas.config.engines import EngineSection
from schemas.randomness import derived_seed
from tests.support import tiny

V = len(VOCABULARY)
KINDS = [(arch, tied) for arch in ("qwen3", "llama", "gemma2") for tied in (True, False)]
SOFTCAPS = {
    "final_logit_softcapping": 2.0,
    "attn_logit_softcapping": 3.0,
    "sliding_window": 4,
    "initializer_range": 0.4,
}
PLAIN = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=8, stop_token_ids=(EOS,))
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Tiny:
    """A model on disk, opened as an engine and as plain transformers."""

    folder: Path
    reference: Any
    base: Path | None = None
    """The model that the folder's adapter belongs to, where it is one."""

    @property
    def source(self) -> ModelSource:
        """Return where the model is."""
        base = None if self.base is None else ModelSource(str(self.base), None, False)
        return ModelSource(str(self.folder), None, False, base)

    def engine(
        self,
        *,
        batch_tokens: int = 4096,
        chunk_tokens: int = 1024,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> Engine:
        """Return the model in an engine of its own."""
        settings = json.loads(((self.base or self.folder) / "config.json").read_text())
        chunk_mb = chunk_tokens * 4 * settings["vocab_size"] / 2**20
        section = EngineSection(device=device, batch_tokens=batch_tokens, logit_chunk_mb=chunk_mb)
        return open_engine(Start(self.source, section, dtype=dtype, use="score"), print)

    @torch.no_grad()
    def logits(self, prompt: Ids, response: Ids) -> Doubles:
        """Return the logits that predict each response token, from one unpadded forward."""
        row = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))[None]
        logits_TV = self.reference(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1]
        return np.asarray(logits_TV.double().numpy())


class Models:
    """Tiny models, each made once."""

    def __init__(self, make_folder: Callable[[str], Path]) -> None:
        """Take a maker of empty folders."""
        self._make_folder = make_folder
        self._made: dict[Any, Tiny] = {}

    def __call__(self, arch: str = "qwen3", tied: bool = True, **settings: Any) -> Tiny:
        """Return a model."""
        key = (arch, tied, *settings.items())
        if key not in self._made:
            settings |= SOFTCAPS if arch == "gemma2" else {}
            folder = self._make_folder(arch)
            tiny.make_model(folder, arch=arch, tied=tied, **settings)
            reference = plainly(folder)
            self._made[key] = Tiny(folder, reference)
        return self._made[key]


def plainly(folder: Path) -> Any:
    """Return a model whose attention is computed as its definition says, soft caps and all."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )


def adapted(model: Tiny, folder: Path, **settings: Any) -> Tiny:
    """Return a model with a random adapter beside its layers; the reference does not merge it."""
    from peft import PeftModel

    tiny.make_adapter(folder, model.folder, **settings)
    base = plainly(model.folder)
    reference = PeftModel.from_pretrained(base, str(folder)).eval()
    return Tiny(folder, reference, model.folder)


def rows(count: int = 7) -> tuple[list[Ids], list[Ids]]:
    """Ragged prompts and responses without padding ids; half the responses end with the stop."""
    random = np.random.default_rng(0)
    prompts = [random.integers(1, V, n).astype(np.int32) for n in random.integers(1, 12, count)]
    responses = [random.integers(1, V, n).astype(np.int32) for n in random.integers(1, 9, count)]
    for response in responses[::2]:
        response[-1] = EOS
    return prompts, responses


def log_softmax(logits: Doubles) -> Doubles:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


CORE = ("topk_ids", "topk_logprobs", "tail_logprobs", "token_logprob", "token_rank", "entropy")


def log_sum(logprobs: list[float]) -> float:
    return math.log(sum(math.exp(x) for x in logprobs)) if logprobs else -math.inf


def reference_scores(
    model: Tiny, prompts: list[Ids], responses: list[Ids], *, k: int, vocab_size: int
) -> Scores:
    """Every signal from its definition, token by token, in float64."""
    found: dict[str, list[Any]] = {name: [] for name in CORE}
    for prompt, response in zip(prompts, responses, strict=True):
        for logprobs, token in zip(
            log_softmax(model.logits(prompt, response)), response.tolist(), strict=True
        ):
            top = sorted(range(vocab_size), key=lambda i: -logprobs[i])[:k]  # noqa: B023
            found["topk_ids"].append(top)
            found["topk_logprobs"].append(logprobs[top])
            found["tail_logprobs"].append(
                log_sum([x for i, x in enumerate(logprobs) if i not in top])
            )
            found["token_logprob"].append(logprobs[token])
            found["token_rank"].append(1 + sum(x > logprobs[token] for x in logprobs))
            found["entropy"].append(-sum(math.exp(x) * x for x in logprobs))
    return Scores.of({name: np.array(values) for name, values in found.items()})


def assert_same_scores(found: Scores, expected: Scores, *, atol: float = 1e-5) -> None:
    for name in CORE:
        value, mine = getattr(expected, name), getattr(found, name)
        assert mine.shape == value.shape, name
        if name in ("topk_ids", "token_rank"):
            assert mine.dtype == np.int32
            np.testing.assert_array_equal(mine, value, err_msg=name)
        else:
            assert mine.dtype == np.float32
            np.testing.assert_allclose(mine, value, rtol=0, atol=atol, err_msg=name)


def generate(engine: Engine, prompts: list[Ids], sampling: Sampling, order: Any) -> list[Sample]:
    """Sample prompts in an order; return the samples in the order of the prompts."""
    samples = engine.generate(
        [prompts[i] for i in order], [derived_seed("row", int(i)) for i in order], sampling
    )
    return [samples[i] for i in np.argsort(np.asarray(order))]


def reference_logprobs(logits: Doubles, sampling: Sampling) -> Doubles:
    """Log-probabilities after temperature, top-k and top-p, id by id."""
    processed = np.full_like(logits, -math.inf)
    for row, values in enumerate(logits / (sampling.temperature or 1.0)):
        order = np.argsort(-values)[: sampling.top_k or None]
        probs = np.exp(values[order] - values[order].max())
        probs /= probs.sum()
        kept = [i for n, i in enumerate(order) if probs[:n].sum() < sampling.top_p]
        processed[row, kept] = values[kept] - log_sum(list(values[kept]))
    return processed
