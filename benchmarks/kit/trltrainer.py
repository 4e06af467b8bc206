"""TRL's side of `peers`: one training by its `DistillationTrainer`, in an environment of its own.

Run as `python -m benchmarks.kit.trltrainer JSON`, a `Recipe` in JSON. Must not import opd: the
trainer has the process, its CPU seconds and its memory for itself.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Recipe:
    """One training on the quickstart's files: what both sides are told, and where it ends."""

    folder: str
    """Holds the models `student` and `teacher`, and `prompts.jsonl`."""
    out: str
    """Where the trained student goes."""
    steps: int
    seed: int
    sequences: int
    """Sequences of a step, each sampled for it."""
    new_tokens: int
    learning_rate: float
    floor: float
    """Share of the learning rate at the last step."""
    warmup: int
    betas: tuple[float, float]
    weight_decay: float

    @property
    def words(self) -> str:
        """Return what another process makes the recipe of."""
        return json.dumps(asdict(self))


def train(recipe: Recipe) -> None:
    """Train a student by forward KL on its own samples, and save it."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DistillationConfig, DistillationTrainer

    folder = Path(recipe.folder)
    lines = (folder / "prompts.jsonl").read_text().splitlines()
    settings = DistillationConfig(
        output_dir=recipe.out,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=recipe.sequences,
        gradient_accumulation_steps=1,
        max_steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": recipe.floor},
        warmup_steps=recipe.warmup,
        adam_beta1=recipe.betas[0],
        adam_beta2=recipe.betas[1],
        weight_decay=recipe.weight_decay,
        max_grad_norm=MAX_GRAD_NORM,
        max_completion_length=recipe.new_tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,  # forward KL
        seed=recipe.seed,
        report_to=[],
        save_strategy="no",
        logging_steps=10,
        disable_tqdm=True,
    )
    trainer = DistillationTrainer(
        model=str(folder / "student"),
        teacher_model=str(folder / "teacher"),
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": [json.loads(x)["prompt"] for x in lines]}),
        processing_class=AutoTokenizer.from_pretrained(folder / "student"),
    )
    trainer.train()
    trainer.save_model(recipe.out)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    train(Recipe(**given | {"betas": tuple(given["betas"])}))
