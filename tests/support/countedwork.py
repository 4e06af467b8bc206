"""Work on the units of a stage that is counted."""

from dataclasses import dataclass, field

from pipeline.runs.units import Worker, run_units
from pipeline.store.commit import content_shard, publish
from pipeline.store.storage import Storage

FOLDER = "runs/a/rounds/0000/score/big"
UNITS = [f"{number:05d}" for number in range(12)]
TOKENS = 7


@dataclass
class Recorder:
    """Progress that remembers what it was told."""

    started: list[tuple[str, int, int]] = field(default_factory=list)
    units: int = 0
    tokens: int = 0
    stopped: int = 0
    notes: list[str] = field(default_factory=list)

    def start(self, stage: str, total: int, done: int) -> None:
        """Remember the beginning."""
        self.started.append((stage, total, done))

    def advance(self, units: int = 1, *, tokens: int = 0) -> None:
        """Count."""
        self.units += units
        self.tokens += tokens

    def note(self, text: str) -> None:
        """Remember the text."""
        self.notes.append(text)

    def stop(self) -> None:
        """Count."""
        self.stopped += 1


@dataclass
class Work:
    """Work on units that is counted; safe to share between threads."""

    storage: Storage
    computed: list[str] = field(default_factory=list)
    dies_after: int = len(UNITS)

    def compute(self, index: int) -> int:
        """Publish a unit's shard and return its tokens."""
        if len(self.computed) == self.dies_after:
            raise KeyboardInterrupt
        self.computed.append(UNITS[index])
        data = f"unit {index}".encode()
        shard = content_shard("data", data, rows=1, tokens=TOKENS)
        publish(self.storage, FOLDER, UNITS[index], shard=shard, data=data, fingerprint="w")
        return TOKENS

    def run(self, worker: Worker | None = None, progress: Recorder | None = None) -> set[str]:
        """Run the stage."""
        return run_units(
            self.storage,
            FOLDER,
            UNITS,
            label="score big",
            worker=worker or Worker(),
            compute=self.compute,
            progress=progress or Recorder(),
        )
