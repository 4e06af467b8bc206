"""A teacher and a student for `benchmarks support`: random ones, or those of a model's folder.

The random ones are made to have what real rows have: ids of very unequal frequency, and positions
of very unequal sharpness. Shapes: B rows, T positions, H hidden, V vocabulary.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.models.head import head_of
from schemas.errors import ConfigError

RESPONSE = 64
"""Positions of a sequence."""

DISTANCES = ("near", "far")

NOISE = {"near": 0.03, "far": 0.07}
"""Noise on the random student's weights, as a share of their standard deviation."""

MODEL_NOISE = {"near": 0.05, "far": 0.12}
"""The same for the student of a model's folder."""

HIDDEN = 64

SHARPNESS, UNEVENNESS = 3.5, 0.5
"""Standard deviation of the random teacher's logits at a middling position, and that of its
logarithm over positions."""

ZIPF, FLAT = 2.0, 100
"""An id of rank r is as frequent as (r + FLAT)^-ZIPF. Together: the likeliest 1, 16 and 64 ids of a
position have 41, 78 and 90 % of the mass, from 9 to 95 % (likeliest id, 5th to 95th percentile).
A real model of 270 million parameters has 45, 79 and 88 % on its own samples, from 8 to 98 %."""

MOST_IDS = 32_768
"""Ids that a model's vocabulary is cut to: those with the largest share of what it samples."""

LAYERS = 2
"""Last layers of a model whose gradients are compared, beside those of its head."""


class Pair:
    """Two models of one vocabulary, and the weights whose gradients are compared."""

    def __init__(
        self,
        teacher: Any,
        noise: float,
        seed: int,
        *,
        layers: int | None = None,
        sharp_V: Tensor | None = None,
    ) -> None:
        """Make the student: the teacher, with noise on its matrices.

        Args:
            teacher: a causal language model.
            noise: standard deviation, as a share of each matrix's own.
            seed: root of everything random.
            layers: last layers whose gradients are compared; default all weights.
            sharp_V: factor of the hidden states after each id; default 1.
        """
        self.random = torch.Generator().manual_seed(seed)
        self._sharp_V = sharp_V
        self.teacher, self.student = teacher, copy.deepcopy(teacher)
        self.vocab = int(teacher.get_output_embeddings().weight.shape[0])
        with torch.no_grad():
            for weight in self.student.parameters():
                if weight.dim() > 1:
                    shift = torch.randn(weight.shape, generator=self.random)
                    weight += noise * weight.std() * shift
        for weight in self.teacher.parameters():
            weight.requires_grad_(False)
        self.teacher_head, self.head = head_of(self.teacher), head_of(self.student)
        inner = self.student.model
        compared = inner.parameters() if layers is None else inner.layers[-layers:].parameters()
        self.weights = [weight for weight in compared if weight is not self.head.weight_VH]
        for weight in self.student.parameters():
            weight.requires_grad_(any(weight is other for other in self.weights))

    def states(self, model: Any, rows_BT: Tensor) -> Tensor:
        """Return the hidden states [T, H] of one of both that predict the ids after the first."""
        ids_BT = rows_BT[:, :-1]
        out = model.model(input_ids=ids_BT, use_cache=False)
        return self._sharpened(out.last_hidden_state, ids_BT).flatten(0, 1)

    def _sharpened(self, states_BTH: Tensor, ids_BT: Tensor) -> Tensor:
        return states_BTH if self._sharp_V is None else states_BTH * self._sharp_V[ids_BT, None]

    @torch.no_grad()
    def sampled(self, rows: int) -> Tensor:
        """Return ids [B, 1 + RESPONSE] that the student draws after a first one."""
        return torch.cat([self._sampled(min(64, rows - n)) for n in range(0, rows, 64)])

    def _sampled(self, rows: int) -> Tensor:
        ids_BT = self._first(rows)
        cache = None
        for _ in range(RESPONSE):
            out = self.student.model(
                input_ids=ids_BT[:, -1:], past_key_values=cache, use_cache=True
            )
            cache = out.past_key_values
            states_BTH = self._sharpened(out.last_hidden_state, ids_BT[:, -1:])
            weights_BV = self.head.logits(states_BTH[:, -1]).softmax(-1)
            ids_BT = torch.cat([ids_BT, drawn(weights_BV, self.random)], dim=1)
        return ids_BT

    def _first(self, rows: int) -> Tensor:
        bos = self.teacher.config.bos_token_id
        if bos is not None:
            return torch.full((rows, 1), bos)
        return torch.randint(self.vocab, (rows, 1), generator=self.random)


def drawn(weights_BV: Tensor, random: torch.Generator) -> Tensor:
    """Return ids [B, 1] drawn in proportion to weights."""
    rising_BV = weights_BV.cumsum(-1)
    uniforms_B1 = torch.rand(len(rising_BV), 1, generator=random)
    ids_B1 = torch.searchsorted(rising_BV, uniforms_B1 * rising_BV[:, -1:], right=True)
    return ids_B1.clamp(max=rising_BV.shape[1] - 1)


def random_pair(vocab: int, distance: str, seed: int) -> Pair:
    """Return a random teacher and its student."""
    sizes_V = torch.randn(vocab, generator=torch.Generator().manual_seed(seed))
    sharp_V = (UNEVENNESS * sizes_V).exp()
    return Pair(_random_model(vocab, seed), NOISE[distance], seed, sharp_V=sharp_V)


def model_pair(folder: Path, distance: str, seed: int) -> Pair:
    """Return the model of a folder and its student."""
    return Pair(_model_of(folder, seed), MODEL_NOISE[distance], seed, layers=LAYERS)


def _random_model(vocab: int, seed: int) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    make: Any = Qwen3Config
    config = make(
        vocab_size=vocab,
        hidden_size=HIDDEN,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        initializer_range=0.1,
        tie_word_embeddings=False,
        bos_token_id=None,
    )
    build: Any = Qwen3ForCausalLM
    model = build(config).float().eval()
    model.lm_head = torch.nn.Linear(HIDDEN, vocab)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=SHARPNESS / HIDDEN**0.5)
        model.lm_head.bias.copy_(-ZIPF * (torch.arange(vocab) + 1.0 + FLAT).log())
    return model


def _model_of(folder: Path, seed: int) -> Any:
    """Return the model of a folder, its vocabulary cut to `MOST_IDS`."""
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM
    model = load.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    head = head_of(model)
    if head.softcap is not None or head.bias_V is not None:
        raise ConfigError(f"{folder}: the benchmark knows no head with a soft cap or a bias")
    return model if len(head.weight_VH) <= MOST_IDS else _cut(model, seed)


@torch.no_grad()
def _cut(model: Any, seed: int) -> Any:
    """Return a model that knows the ids alone that are likeliest where it samples itself."""
    itself, masses = Pair(model, 0.0, seed), list[Tensor]()
    for rows_BT in torch.split(itself.sampled(8), 1):
        logits_TV = itself.teacher_head.logits(itself.states(model, rows_BT))
        masses.append(logits_TV.softmax(-1).sum(0))
    mass_V = torch.stack(masses).sum(0)
    bos = model.config.bos_token_id
    if bos is not None:
        mass_V[bos] = torch.inf
    kept_N = mass_V.topk(MOST_IDS).indices.sort().values
    rows_NH = model.get_input_embeddings().weight[kept_N].clone()
    heads_NH = model.get_output_embeddings().weight[kept_N].clone()
    model.resize_token_embeddings(MOST_IDS)
    model.get_input_embeddings().weight.copy_(rows_NH)
    model.get_output_embeddings().weight.copy_(heads_NH)
    model.config.bos_token_id = None if bos is None else int((kept_N == bos).nonzero())
    return model
