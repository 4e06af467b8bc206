"""Prompts of a run: tokenised once, pinned in the store, and read back from there.

Promises: the token ids of a run's prompts never change after the first use; a changed file,
tokenizer or option is refused, a file that is gone is not missed.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from pipeline.models.tokenizeridentity import template_digest, tokenizer_digest
from pipeline.prompts.encoding import Tally, prompt_tables
from pipeline.prompts.files import (
    PromptFile,
    find_prompt_file,
    missing_prompt_file,
    require_prompt_file,
    whole_location,
)
from pipeline.prompts.ids import start_ids
from pipeline.prompts.template import TODAY, template_source
from pipeline.runs.run import Run
from pipeline.shards import parquet
from pipeline.store.commit import content_shard
from pipeline.store.records import create_record, find_record
from pipeline.store.storage import Storage
from pipeline.store.sweeps import settle
from schemas.columns import list_lengths
from schemas.config.prompts import PromptsSection
from schemas.config.run import RunConfig
from schemas.errors import ConfigError, IdentityError
from schemas.fingerprint import fingerprint
from schemas.keys import PROMPTS as PROMPTS_FOLDER
from schemas.keys import manifest_key, prompts_folder
from schemas.records.runs import PromptsManifest
from schemas.records.shards import Shard
from schemas.tables import PROMPTS, SCHEMA_VERSION, check_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LOG = logging.getLogger(__name__)

Split = Literal["train", "eval"]

Pin = Callable[[], PromptsManifest]

Put = Callable[[str, bytes], None]

SHARD_ROWS = 65536
"""Prompts in one shard at most."""

CHAT_PARTS = ("chat template", "prompts.chat_template_kwargs", "prompts.answered")
"""Parts of the identity that matter to files with chats only."""


def prepare_prompts(
    run: Run, split: Split, tokenizer: "PreTrainedTokenizerBase"
) -> PromptsManifest:
    """Return the run's prompts: tokenised and pinned by the first call, the same ever after.

    Args:
        run: the run.
        split: which file of `[prompts]`.
        tokenizer: the student's tokenizer.

    Raises:
        ConfigError: the file is missing, or a record in it cannot be used.
        IdentityError: the file, the tokenizer or an option changed since the prompts were pinned.
    """
    option, key = f"prompts.{split}", manifest_key(prompts_folder(run.name, split))
    source = _source(run, split)
    location = whole_location(run.place, source)
    file = find_prompt_file(location, key=option, config=run.config)
    pinned = find_record(run.storage, key, PromptsManifest)
    if pinned is None:
        if file is None:
            raise missing_prompt_file(location, key=option, config=run.config)
        pinned = _made(run, split, file, tokenizer)()
    if file is not None:
        _check_source(pinned, file, option)
    _check_identity(run.storage, pinned, _identity(run.config.prompts, tokenizer), option)
    return pinned


def made_prompts(run: Run, split: Split, tokenizer: "PreTrainedTokenizerBase") -> Pin:
    """Return what pins the prompts of a file of `[prompts]`, all of which have been read by then.

    Nothing names what is stored before it is called, and of a small file nothing is.

    Raises:
        ConfigError: as `prepare_prompts`.
    """
    named, source = f"prompts.{split}", _source(run, split)
    file = require_prompt_file(run.place, source, key=named, config=run.config)
    return _made(run, split, file, tokenizer)


def _source(run: Run, split: Split) -> str:
    source: str | None = getattr(run.config.prompts, split)
    if source is None:
        raise ConfigError(f"prompts.{split} is not set: name a JSONL or Parquet file of prompts")
    return source


def _made(run: Run, split: Split, file: PromptFile, tokenizer: "PreTrainedTokenizerBase") -> Pin:
    storage, source = run.storage, _source(run, split)
    make = partial(_store_prompts, storage, run.config, file, tokenizer=tokenizer, source=source)
    last: dict[str, bytes] = {}
    made = make(put_last=last.__setitem__)
    again = partial(make, put_last=storage.put)

    def pin() -> PromptsManifest:
        shards = [shard.key for shard in made.shards]
        for key, data in last.items():
            storage.put(key, data)
        settle(storage, shards, lambda _: again())  # should this process die after the record
        record = manifest_key(prompts_folder(run.name, split))
        pinned = create_record(storage, record, made)
        settle(storage, shards, lambda _: again())
        return pinned

    return pin


def read_prompts(storage: Storage, manifest: PromptsManifest) -> pa.Table:
    """Return all pinned prompts in the order of their file, verified.

    Raises:
        DataError: a shard is missing, corrupt or misshapen.
    """
    tables = [PROMPTS.empty_table()]
    for shard in manifest.shards:
        where = storage.url(shard.key)
        data = storage.read_shard(shard)
        table, _ = parquet.read_table(data, where=where, rows=shard.rows)
        check_table(table, PROMPTS, where=where)
        tables.append(table.select(PROMPTS.names).cast(PROMPTS))
    return pa.concat_tables(tables)


def _store_prompts(
    storage: Storage,
    config: RunConfig,
    file: PromptFile,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    source: str,
    put_last: Put,
) -> PromptsManifest:
    """Store a file's prompts; return the manifest that would pin them.

    The last shard, or the only one, goes where the caller says: what is wrong is known by then.
    """
    identity, tally = _identity(config.prompts, tokenizer), Tally()
    tables = prompt_tables(file, config, tokenizer, tally=tally)
    shards = tuple(_store_shards(storage.put, put_last, tables, {"identity": identity}))
    file.check_unchanged()
    skipped = dict(sorted(tally.skipped.items()))
    if skipped:
        LOG.warning(
            "%s: left out %d records: %s", file.location, sum(skipped.values()), tally.reasons
        )
    if tally.chats and TODAY in template_source(tokenizer):
        LOG.warning("%s: the chat template writes today's date, pinned as it is now", file.location)
    used = _used(identity, chats=tally.chats > 0)
    return PromptsManifest(
        source=source,
        source_sha256=file.sha256,
        fingerprint=_fingerprint(file.sha256, used, SCHEMA_VERSION),
        shards=shards,
        rows=sum(shard.rows for shard in shards),
        skipped=skipped,
    )


def _store_shards(
    put: Put, put_last: Put, tables: Iterable[pa.Table], metadata: dict[str, Any]
) -> Iterator[Shard]:
    """Write tables as shards of `SHARD_ROWS` rows and a shorter last one; yield their names."""
    held = PROMPTS.empty_table()
    for table in tables:
        held = pa.concat_tables([held, table])
        while held.num_rows >= SHARD_ROWS:
            yield _store_shard(put, held.slice(0, SHARD_ROWS), metadata)
            held = held.slice(SHARD_ROWS)
    if held.num_rows:
        yield _store_shard(put_last, held, metadata)


def _store_shard(put: Put, table: pa.Table, metadata: dict[str, Any]) -> Shard:
    data = parquet.write_table(table.combine_chunks(), metadata, token_column="prompt_ids")
    tokens = int(list_lengths(table, "prompt_ids").sum())
    shard = content_shard(PROMPTS_FOLDER, data, rows=table.num_rows, tokens=tokens)
    put(shard.key, data)
    return shard


def _identity(section: PromptsSection, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """Return what the ids depend on besides the file, in words; `on_error` cannot change them."""
    later: dict[str, Any] = {}
    if section.answered != "refuse":
        later["prompts.answered"] = section.answered
    if section.columns:
        later["prompts.columns"] = section.columns
    return {
        **later,
        "tokenizer": tokenizer_digest(tokenizer),
        "chat template": template_digest(tokenizer),
        "ids added to text": start_ids(tokenizer, section),
        "prompts.max_tokens": section.max_tokens,
        "prompts.add_special_tokens": section.add_special_tokens,
        "prompts.chat_template_kwargs": section.chat_template_kwargs,
    }


def _used(identity: dict[str, Any], *, chats: bool) -> dict[str, Any]:
    return {name: part for name, part in identity.items() if chats or name not in CHAT_PARTS}


def _fingerprint(source_sha256: str, identity: dict[str, Any], version: int) -> str:
    return fingerprint({"source": source_sha256, "identity": identity, "schema_version": version})


def _check_source(pinned: PromptsManifest, file: PromptFile, option: str) -> None:
    if file.sha256 != pinned.source_sha256:
        raise IdentityError(
            f"{option}: prompts are pinned at first use, and {file.location} has changed since: "
            f"found sha256 {file.sha256}, expected {pinned.source_sha256}. Restore the file, or "
            "start a new run under another run.name"
        )


def _check_identity(
    storage: Storage, pinned: PromptsManifest, identity: dict[str, Any], option: str
) -> None:
    expected = [
        _fingerprint(pinned.source_sha256, _used(identity, chats=chats), pinned.schema_version)
        for chats in (False, True)
    ]
    if pinned.fingerprint in expected:
        return
    shard = pinned.shards[0]
    where = storage.url(shard.key)
    _, metadata = parquet.read_table(storage.read_shard(shard), where=where, columns=[])
    before = metadata.get("identity", {})
    names = dict.fromkeys([*identity, *before])
    changed = [name for name in names if before.get(name) != identity.get(name)]
    raise IdentityError(
        f"{option}: prompts are pinned at first use, and what made them has changed since: "
        f"{', '.join(changed) or 'the version of opd'}. Undo that, or start a new run under "
        "another run.name"
    )
