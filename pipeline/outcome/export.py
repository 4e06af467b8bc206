"""The outcome of a run on a disk: a model folder with its card, and a dataset if asked for.

Promises: what can be refused is refused before anything is written; each folder is there whole,
under a name that was free, or not at all, and the dataset never without the model.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pipeline.outcome.card import model_card
from pipeline.outcome.choice import Choice, choose, wanted_number
from pipeline.outcome.dataset import Dataset, write_dataset
from pipeline.outcome.facts import Facts, read_facts
from pipeline.runs.progress import Progress
from pipeline.runs.run import Run
from pipeline.store.disk.appearing import appearing, require_free
from schemas.errors import ConfigError

CARD = "README.md"


@dataclass(frozen=True)
class Targets:
    """Where an outcome goes."""

    model: Path
    dataset: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What was written."""

    choice: Choice
    bytes: int
    """Of the model folder."""
    dataset: Dataset | None


def export_outcome(
    run: Run, targets: Targets, *, checkpoint: str, merge: bool, progress: Progress
) -> Outcome:
    """Write a checkpoint of a run as a model folder, and its sequences as a dataset.

    Args:
        run: the run.
        targets: names that are free.
        checkpoint: its number, `last` or `best`.
        merge: whether to merge an adapter into its base.
        progress: told of each file of the dataset.

    Raises:
        ConfigError: a name is taken, there is no such checkpoint, or it cannot be merged.
        IdentityError: the configuration is not the run's.
        DataError: what is stored is damaged.
        StorageError: a disk cannot be written.
    """
    _check_targets(run, targets)
    wanted_number(checkpoint)
    facts = read_facts(run)
    choice = choose(facts.records, checkpoint)
    if merge and choice.manifest.base is None:
        raise ConfigError(
            f"--merge merges an adapter into its base, and checkpoint {choice.number} of run "
            f"{run.name} is a whole model: leave --merge out"
        )
    made = None
    with ExitStack() as stack:  # the last one entered appears first
        if targets.dataset is not None:
            place = stack.enter_context(appearing(targets.dataset, folder=True))
            made = write_dataset(facts, place, progress)
        folder = stack.enter_context(appearing(targets.model, folder=True))
        _write_model(facts, choice, folder, merge=merge)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Outcome(choice, size, made)


def _write_model(facts: Facts, choice: Choice, folder: Path, *, merge: bool) -> None:
    from pipeline.outcome.folder import write_checkpoint, write_merged

    write = write_merged if merge else write_checkpoint
    write(facts.run, choice.manifest, folder)
    card = model_card(facts, choice, merged=merge)
    (folder / CARD).write_text(card, encoding="utf-8")


def _check_targets(run: Run, targets: Targets) -> None:
    """Refuse names that are taken, inside of each other, or inside of the store."""
    places = {"--out": targets.model}
    if targets.dataset is not None:
        places["--dataset"] = targets.dataset
    for path in places.values():
        require_free(path)
    whole = [path.absolute().resolve() for path in places.values()]
    if len(whole) == 2 and (whole[0].is_relative_to(whole[1]) or whole[1].is_relative_to(whole[0])):
        raise ConfigError(
            "--out and --dataset are one folder, or one is inside of the other: name two that "
            "stand apart"
        )
    root = run.storage.local_root
    for option, path in zip(places, whole, strict=True):
        if root is not None and path.is_relative_to(root.resolve()):
            raise ConfigError(
                f"{option} {path} is inside of the root {root}, whose objects are opd's own: name "
                "a folder outside"
            )
