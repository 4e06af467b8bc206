"""Forms of what a cache keeps of a token, for `benchmarks support`."""

from dataclasses import dataclass

from schemas.config.loss import LossConfig
from schemas.config.score import OWN, OWN_K, OWN_MOST
from schemas.scoresignal import Signal


@dataclass(frozen=True)
class Form:
    """What is kept of each token, and the loss that reads it."""

    loss: str
    k: int
    own: int = 0
    """Ids of the student's threshold sample, on average where `most` is set."""
    most: int = 0
    """Most ids of it at one token, where tokens have as many as they need; 0: each has `own`."""
    sample: int = 0
    """Ids of the teacher's threshold sample."""
    buckets: int = 1
    estimator: str = "auto"
    long: bool = False
    """Whether it is measured at the most positions, which takes minutes."""

    @property
    def name(self) -> str:
        """Return the form in words."""
        parts = [f"top-{self.k}"] if self.k else []
        own = f"{self.own} student ids" + (" by need" if self.most else "")
        parts += [own] if self.own else []
        parts += [f"{self.sample} teacher ids by sample"] if self.sample else []
        parts += [f"{self.buckets} buckets"] if self.buckets > 1 else []
        kept = " + ".join(parts)
        return f"{kept}, one bucket" if self.estimator == "bucket" else kept

    @property
    def signal(self) -> Signal:
        """Return what a teacher's pass keeps."""
        return Signal(
            self.k,
            candidates=max(self.own, self.most),
            uneven=self.most > 0,
            sample=self.sample,
            tail_buckets=self.buckets,
        )

    @property
    def config(self) -> LossConfig:
        """Return the objective."""
        return LossConfig.model_validate({"kind": self.loss, "estimator": self.estimator})


DEFAULT = Form("reverse_kl", k=OWN_K, own=OWN, most=OWN_MOST, long=True)
"""What a run keeps that says nothing of it (`schemas/config/score.py`)."""

FORMS = (
    DEFAULT,
    Form("reverse_kl", k=0, own=30, most=90),
    Form("reverse_kl", k=8, own=22, most=66),
    Form("reverse_kl", k=16, own=16, most=48),
    Form("reverse_kl", k=0, own=15, most=45, long=True),
    Form("reverse_kl", k=0, own=31),
    Form("reverse_kl", k=4, own=26),
    Form("reverse_kl", k=16, own=16),
    Form("reverse_kl", k=16, own=16, buckets=64),
    Form("reverse_kl", k=0, own=15),
    Form("reverse_kl", k=16),
    Form("reverse_kl", k=64, long=True),
    Form("reverse_kl", k=64, estimator="bucket", long=True),
    Form("forward_kl", k=0, sample=16),
    Form("forward_kl", k=0, sample=32),
    Form("forward_kl", k=0, sample=64),
    Form("forward_kl", k=64, estimator="bucket"),
)
