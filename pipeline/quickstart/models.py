"""Supervised training of the quickstart's two models from nothing: a plain torch loop.

Only the quickstart uses it: real runs bring a teacher and a student that exist.
Shapes: B rows, T tokens, V vocabulary.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.engines.engine import Sampling
from pipeline.engines.hf.engine import HfEngine
from pipeline.engines.opening import engine_version
from pipeline.engines.start import Start
from pipeline.models.border import settle_libraries
from pipeline.models.padding import padded, response_positions
from pipeline.models.source import ModelSource
from pipeline.quickstart.addition import (
    BOS,
    EOS,
    MAX_RESPONSE_TOKENS,
    PAD,
    VOCABULARY,
    Problem,
    distinct,
    encode,
    make_tokenizer,
    problems,
    with_mistakes,
)
from schemas.config.engines import EngineSection

HEAD = 32
"""Width of an attention head: the smallest that vLLM runs on a CPU."""

CHECKED = 256
"""Held-out problems that decide whether training ends."""


@dataclass(frozen=True)
class Recipe:
    """Size and training of one model."""

    hidden: int
    layers: int
    inner: int
    steps: int
    batch: int
    mistakes: float
    """Share of wrong tokens in every second training response."""
    decay: bool
    """Let the learning rate fall to a tenth along a cosine."""
    stop_at: float
    """Accuracy on held-out problems at which training ends."""
    check_every: int
    learning_rate: float = 3e-3


TEACHER = Recipe(
    hidden=128,
    layers=3,
    inner=384,
    steps=500,
    batch=64,
    mistakes=0.1,
    decay=True,
    stop_at=2.0,
    check_every=500,
)

STUDENT = Recipe(
    hidden=64,
    layers=2,
    inner=192,
    steps=4000,  # some seeds need 1,600
    batch=32,
    mistakes=0.0,
    decay=False,
    stop_at=0.30,
    check_every=25,
)


def train_model(
    recipe: Recipe, folder: Path, *, seed: int, report: Callable[[int, int], None]
) -> float:
    """Train a model of the addition task, save it and return its held-out accuracy.

    Args:
        recipe: what to train and how long.
        folder: where the Hugging Face folder goes.
        seed: root of weights and problems.
        report: told of each step and of how many there are at most.
    """
    model = make_model(recipe, seed)
    betas = (0.9, 0.98)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=betas)
    batches, accuracy = _batches(recipe, seed), 0.0
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(recipe, step)
        loss = _loss(model, *next(batches))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call] # torch's gap
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        report(step + 1, recipe.steps)
        if (step + 1) % recipe.check_every == 0 or step + 1 == recipe.steps:
            _save(model, folder)
            accuracy = held_out_accuracy(folder, seed, CHECKED)
            if accuracy >= recipe.stop_at:
                break
    return accuracy


def make_model(recipe: Recipe, seed: int) -> Any:
    """Return an untrained Qwen3 model with tied embeddings, float32."""
    settle_libraries()
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    heads = 4
    config = Qwen3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=HEAD,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=BOS,
        initializer_range=0.05,
    )
    make: Any = Qwen3ForCausalLM
    return make(config).float()


def held_out_accuracy(folder: Path, seed: int, count: int) -> float:
    """Return the share of held-out problems that a saved model solves, most likely tokens taken."""
    settings = EngineSection(engine="hf", device="cpu")
    source = ModelSource(str(folder), None, False)
    start = Start(source, settings, dtype="float32", use="sample")
    engine = HfEngine(start, version=engine_version("hf"))
    sampling = Sampling(
        temperature=0.0,
        top_p=1.0,
        top_k=0,
        max_new_tokens=MAX_RESPONSE_TOKENS,
        stop_token_ids=(EOS,),
    )
    asked = distinct(count, seed, held_out=True)
    prompts = [np.array(encode(p.prompt), dtype=np.int32) for p in asked]
    samples = engine.generate(prompts, list(range(count)), sampling)
    right = [_is_right(p, s.ids.tolist()) for p, s in zip(asked, samples, strict=True)]
    return sum(right) / count


def _is_right(problem: Problem, ids: list[int]) -> bool:
    text = "".join(VOCABULARY[i] for i in ids[:-1])
    return ids[-1] == EOS and text.rpartition("#")[2] == problem.answer


def _batches(recipe: Recipe, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield ids, mask, states that predict response tokens, and the targets at these states."""
    source, asked = random.Random(seed), problems(seed, held_out=False)
    while True:
        rows, prompts, targets = [], [], []
        for index, problem in enumerate(islice(asked, recipe.batch)):
            share = recipe.mistakes if index % 2 else 0.0
            written, right = with_mistakes(problem, source, share)
            prompts.append(len(problem.prompt))
            rows.append(np.array(encode(problem.prompt + written) + [EOS], dtype=np.int32))
            targets.append(np.array(encode(right) + [EOS], dtype=np.int64))
        ids_BT, mask_BT = padded(rows, "cpu", left=False)
        lengths = np.array([len(t) for t in targets])
        states_2T = response_positions(np.array(prompts), lengths)
        yield ids_BT, mask_BT, states_2T, torch.from_numpy(np.concatenate(targets))


def _loss(
    model: Any, ids_BT: Tensor, mask_BT: Tensor, states_2T: Tensor, targets_T: Tensor
) -> Tensor:
    logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
    return functional.cross_entropy(logits_BTV[states_2T[0], states_2T[1]], targets_T)


def _learning_rate(recipe: Recipe, step: int, warmup: int = 20) -> float:
    if step < warmup and recipe.decay:
        return recipe.learning_rate * (step + 1) / warmup
    if not recipe.decay:
        return recipe.learning_rate
    done = (step - warmup) / max(1, recipe.steps - warmup)
    return recipe.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def _save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
