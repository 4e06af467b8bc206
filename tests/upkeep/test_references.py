"""What names an object of a scorer."""

from pipeline.cache.index.compaction import compact
from pipeline.cache.index.index import Index
from pipeline.store.storage import Storage
from pipeline.upkeep.references import scorer_references
from schemas.fingerprint import sha256
from schemas.records.scores import CacheCommit
from schemas.records.shards import Shard


def test_gc_knows_what_a_merged_index_names(local_storage: Storage) -> None:
    index, shards = Index(local_storage, "s"), []
    for unit in range(3):
        digest = sha256(f"shard {unit}".encode())
        key = f"cache/s/data/{digest}.parquet"
        shards.append(Shard(key=key, sha256=digest, bytes=1, rows=2, tokens=3))
        commit = CacheCommit(
            unit=f"u{unit}",
            shard=shards[-1],
            fingerprint="s",
            attempt="a",
            paid_by="demo/0000",
            teacher_tokens=0,
            reused_rows=0,
        )
        index.add(commit, [sha256(f"{unit} {row}".encode())[:32] for row in range(2)])
    assert compact(local_storage, index, new_units=3)
    for name in local_storage.names("cache/s/commits"):
        local_storage.delete(f"cache/s/commits/{name}")
    pieces = {
        f"cache/s/index/{kind}/{name}"
        for kind in ("parts", "tables")
        for name in local_storage.names(f"cache/s/index/{kind}")
    }
    assert len(pieces) == 2
    assert scorer_references(local_storage, "s") == pieces | {shard.key for shard in shards}
