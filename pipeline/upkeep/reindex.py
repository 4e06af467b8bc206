"""The sequence index of a scorer, made anew from its committed shards."""

from pipeline.cache.holds import held
from pipeline.cache.index.index import Index
from pipeline.cache.index.rebuild import Rebuilt, rebuild
from pipeline.runs.progress import Progress
from pipeline.store.storage import Storage


def reindex_scorer(storage: Storage, scorer: str, progress: Progress) -> Rebuilt:
    """Make the index of a scorer anew; return what was done.

    Args:
        storage: the root.
        scorer: key of the scorer.
        progress: told of each shard.

    Raises:
        StorageError: other processes change the index without end.
    """
    with held(storage, [scorer]):
        return rebuild(storage, Index(storage, scorer), anew=True, progress=progress)
