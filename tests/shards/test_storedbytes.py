"""What codecs store is fixed to the byte: shards of some tables have the digests that they had."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from pipeline.scores.columns import table_of
from pipeline.scores.scores import Scores
from pipeline.shards.packed.renumbering import Renumbering
from pipeline.shards.parquet import write_table
from pipeline.shards.scores import decode_scores, write_scores
from schemas.fingerprint import sha256
from schemas.records.scores import ScorerIdentity
from schemas.scoresignal import Signal

Numbers = NDArray[np.int64]

LENGTHS = np.array([1, 40, 7, 300], np.int64)
TOKENS = int(LENGTHS.sum())

SIGNALS = {
    "plain": Signal(3),
    "server": Signal(3, tail="derived", entropy=False),
    "one": Signal(1, candidates=1, draws=1),
    "all": Signal(5, top_p=0.9, min_k=2, tail_buckets=4, candidates=3, draws=6),
    "sampled": Signal(3, sample=4),
    "alone": Signal(0, sample=4, candidates=2, entropy=False),
    "tempered": Signal(2, temperatures=(2.0, 0.5), entropy=False),
    "by need": Signal(4, candidates=7, uneven=True, entropy=False),
}

WRITER = "parquet-cpp-arrow version 26.0.1"
"""The library that wrote the files whose digests these are; another one may lay pages otherwise."""

GOLDEN = {
    ("plain", "typed-v1", 1000): (
        "960bb0ce779c1d6415959fbd98487e74367e833b869bbd453bc8af9f04945d94",
        "a7ee20c1a4fd90be728c64cec2007da76a6d9c26b3aed3fcb8444aa1dad73a05",
    ),
    ("plain", "typed-v1", 70000): (
        "a026e7ee19c5d662665c2b002c8ebe57b0cf648860a93b9f479acb698072490f",
        "f9e25142c7425c536604ad56835a236bbc168ed68d8ff19d140c6fa499b787ef",
    ),
    ("plain", "packed-v1", 1000): (
        "a2e84c0c73637dee2ca6e238be77c97bb39db118aa681d8f630857389331ce32",
        "3eadb9936d8c49d68d1d044ffb841d2adaa902143de07e74b300c048058d6d73",
    ),
    ("plain", "packed-v1", 70000): (
        "49e8d0c0e5a745dae50c48ff81ae53bf838765d60d94872adcca31c1c3fa62f9",
        "c489a4b6d106dc617e4b18c943be32a7dd36e0d2d96434958c01b8f32ea392d7",
    ),
    ("server", "typed-v1", 1000): (
        "50233765edd7defd55b87963af330ae5d0a66d4d3add5c147b392e47d58108b8",
        "f41fd60c9ba18ab6642e98ebd4fbc352c0f0aa0862323402502b237bd849ed4c",
    ),
    ("server", "typed-v1", 70000): (
        "ce44de498f5812ad35f51b1b603da77077cd639f52271f1eea459960e89da022",
        "2aa38ebe353054d7e12fa4c252426b2773320e0c4cff6078b2281d611cd0dec8",
    ),
    ("server", "packed-v1", 1000): (
        "6c5324f95cf333495be57543a5409ce80de406efa93c3bcbdebeb50f25f73264",
        "9eb4dce91eac6eb8ca15f3c0a3999d5609f0cebe3bd1feca7a59efb26de1ed1f",
    ),
    ("server", "packed-v1", 70000): (
        "8bf8255b0712c469cc746fba12fb5dbb6f06ed1f56937f0451c6ab1c1e83a418",
        "ad9c5395d516f4091cc675e42fec63ef5e9af095fb72ef260ccd45fd5e9c4ca1",
    ),
    ("one", "typed-v1", 1000): (
        "9ba0c09170e561d760775dd5e50704f2f4420fab2bf6fac796cad9db45e1bd17",
        "fde5c1fa5e0554299b561c32a1b992385f3d7ea6393eaab5cee48c3e3ae94e91",
    ),
    ("one", "typed-v1", 70000): (
        "e99862f858a0c96a6c7933c82aa3d07f39b3e456a9ba7aa42118eb086378ee95",
        "5f0c404a7e833de64e9ce37363116cca89a3f63a73172fd0b87c7816be459e94",
    ),
    ("one", "packed-v1", 1000): (
        "700909d03d0d89a6a49fa59c893540fbdc95b57275ebf270516dfd1a8a8ed4d2",
        "5018c3a6a0a8876c17519adb486ddd19edc6aeab8c1d5cdc93f9c287e9591495",
    ),
    ("one", "packed-v1", 70000): (
        "79f19cf354209aba4b28b3bae48b6e1bc5107cdf473a69c49c0644bc830b0272",
        "bbced109225d6eac894b3499c53ace300539585db2a4e761dee5882c86ad8b25",
    ),
    ("all", "typed-v1", 1000): (
        "7dedb95c7f04a46870f065fbb5ccfe93d626e107d330f37d481353788ad3ab45",
        "16a5b7564d763341eaf09849424aef7c893b47f31327551cf4bcb5beacb1b8db",
    ),
    ("all", "typed-v1", 70000): (
        "bcbe301dfbc9209dd0c2be8219216baa47f8e1512bc14d89215caea069a16fca",
        "1c5e3194eff72a68f1bcfba15c974c2053b5da7d7fd99888a76aa7534fcc32d9",
    ),
    ("all", "packed-v1", 1000): (
        "e26f737a69fc677d5533f2e3ad7eb00f739d00b11d05ecc649693e2f28565116",
        "6c08d1598ef79d5ec51517db2f1a7f54f16e96be519bc08d418940467eec4e30",
    ),
    ("all", "packed-v1", 70000): (
        "a73e51de660ce9e5616da7365a9b4d7c2f9689a7cd367263d24fb9594a8cd507",
        "3e05be1f62d563935f8d1ac23c8731585a892127af3b1b71b33318e9521ffd8e",
    ),
    ("sampled", "typed-v1", 1000): (
        "d8109e2c98893fd61d52583c5e32cf56ac64d1ffdd0266bd8bf189fbe3993f0e",
        "ff8ba1d50501c5d5a155497d12e7b867183efcf31e15df278a1df473e779af23",
    ),
    ("sampled", "typed-v1", 70000): (
        "bc28f2ba39c2a040ea3ecfbeebcb28e7efa3d515289d5e8bcfccbf29c5a3616b",
        "38cc515f3fd8953a7c890863d9a97e52e992a5395682e72a2d9adeabe09f759c",
    ),
    ("sampled", "packed-v1", 1000): (
        "9f5f8932993509059f5a5269b613edcc01fed25e3952d00c21a061004f55a0a4",
        "5d0b89876312990eb9db223d38a52f0e11efa82a68ff2149d769a84f65fece81",
    ),
    ("sampled", "packed-v1", 70000): (
        "4cd623376d3b7d968413bdf8b9961b24789c90d4d525c80c6d0a2a2dca325768",
        "5612af28f51c8f9e7c30cf270813d6c9f54188dc9f963636be822cf8b55f5bc2",
    ),
    ("alone", "typed-v1", 1000): (
        "d3195523dc6defa38094612f9f2d1164fde903cc8f5cf4e077db252a95e4b380",
        "5ad518fb319e7275a23b793baa11148ff202c29207902da1ec7d92e9fd2abed6",
    ),
    ("alone", "typed-v1", 70000): (
        "f24dee569d1e9a575e7c9a09086e21325d3b1bcf536f9009463fdc9dbee83b62",
        "55012c24b27e49ef064c5737a1433cfeb3311eeb0e43fff1a0d573667b5b4b9a",
    ),
    ("alone", "packed-v1", 1000): (
        "c89eeac233da48b15128d5a4706e8b6c4ef37e6e1552064392c17efccb87643c",
        "8ef9ca52a29644316b564bc08df51570afe0bc5d827ea6bda1c388f4ce8969d1",
    ),
    ("alone", "packed-v1", 70000): (
        "40fb831abded7bfddf3d4af0d1e3a0e694dac3182cf5ab6ae626a49ad00a34e0",
        "78da0058198e48cc163c3c0fa7bcaf25ca63ad5598bac0c19849a8c892894d6e",
    ),
    ("tempered", "typed-v1", 1000): (
        "12f478a3441f32e1e54c97ad2bfcb101b06e2774610487f29276cee58a835ab0",
        "d50678300dc726328815c471f33e1aab7892ee4e44fff4e070bd7e172e10cf69",
    ),
    ("tempered", "typed-v1", 70000): (
        "ddda4dcec1b76a617d398a1a4d8e3866c149535c1bf7198c309bca88850d20c8",
        "1278efce2595c8ad77cacc6ec45be3be9e99cda2c8bc4cfe1da5d6c198037d49",
    ),
    ("tempered", "packed-v1", 1000): (
        "08a6a30ea7b9dc4761f310e52f0edeae7c3f6a5746c30ef122e2f9703e196d7f",
        "13426c318e46cfd525931c502123e86819e496afd7459453a5ad2b7620ae4e11",
    ),
    ("tempered", "packed-v1", 70000): (
        "f79236f9be71b2dc38dee224272104b77e2ebf850bff15a7ddb1474dcbf09cfa",
        "c1a9d2e35938902f9e219474b16c9cc4bd63b5321ea7c62efe039907ae80c3d7",
    ),
    ("by need", "typed-v1", 1000): (
        "242ac44bd3a7e2b5aea3f452816de8c5a7320051e7cce23f09096d4a455e4597",
        "1e777337cd406d1ea3adc30cad7a9febb0dac250b3f8cc23985d6087b810eff5",
    ),
    ("by need", "typed-v1", 70000): (
        "5a82b826a3389b0874c716eba9eb600a5a37cec85b8ca5a4bfd2eb8249b304c8",
        "716a0f8919925e146802a58fdbffc81563efd333b71c047a6291ac810fd1100e",
    ),
    ("by need", "packed-v1", 1000): (
        "23fa43f03dd45c508b6209bc7777e69475a331a6fc1ac08007b2489c53cdb814",
        "42e01e4424099188eb59d8ed25df6845133ce8630f7ea80fff41b95f38ebc511",
    ),
    ("by need", "packed-v1", 70000): (
        "8f8e1585985b0d2ce57314f24339931ec13c6b6a374779c3f5e196adf2f4c741",
        "f1fc4b76f503a6de72fe7b4c4104150d28fbf20c220d45eaa8031ca19222caf9",
    ),
}
"""Signal, codec and vocabulary → digest of the stored columns, and of the whole file."""


def noise(name: int, *shape: int) -> Numbers:
    """Return whole numbers below 2^32 that look random and are the same everywhere."""
    numbers = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) + np.uint64(name << 32)
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
        numbers = (numbers ^ (numbers >> np.uint64(29))) * np.uint64(factor)
    return (numbers >> np.uint64(32)).astype(np.int64).reshape(shape)


def logprobs(name: int, *shape: int) -> NDArray[np.float32]:
    """Return log-probabilities that float32 holds exactly; one in 64 is -inf."""
    found = noise(name, *shape)
    values = -((found >> 8) % 4096) / 2.0 ** (5 + found % 5)
    return np.where(found % 64 == 63, -np.inf, values).astype(np.float32)


def scores(signal: Signal, vocab: int) -> Scores:
    """Return valid scores that no model gives, made without a logarithm."""
    ids = (noise(1, TOKENS, 1) + np.arange(signal.k) * (1 + noise(2, TOKENS, 1) % 7)) % vocab
    top = -np.sort(-logprobs(3, TOKENS, signal.k), axis=1)
    if signal.ragged:
        count = signal.min_k + noise(4, TOKENS, 1) % (signal.k - signal.min_k + 1)
        cut = np.arange(signal.k) >= count
        ids, top = np.where(cut, -1, ids), np.where(cut, -np.inf, top).astype(np.float32)
    arrays: dict[str, NDArray[Any]] = {
        "topk_ids": ids.astype(np.int32),
        "topk_logprobs": top,
        "tail_logprobs": logprobs(5, TOKENS, signal.tail_buckets).squeeze(),
        "token_logprob": logprobs(6, TOKENS),
        "token_rank": (1 + noise(7, TOKENS) % vocab).astype(np.int32),
    }
    if signal.entropy:
        arrays["entropy"] = ((noise(8, TOKENS) % 4096) / 256).astype(np.float32)
    if n := signal.candidates:
        none = signal.uneven & (np.arange(n) > noise(18, TOKENS, 1) % n)
        own = np.where(none, -1, noise(9, TOKENS, n) % vocab)
        arrays["candidate_ids"] = own.astype(np.int32)
        arrays["candidate_logprobs"] = np.where(none, -np.inf, logprobs(10, TOKENS, n))
    if d := signal.draws:
        arrays["draw_ids"] = np.sort(noise(11, TOKENS, d) % 5, axis=1).astype(np.int32)
    if n := signal.sample:
        cut = np.arange(n) >= noise(12, TOKENS, 1) % (2 * n)  # half of them have n ids
        own = (noise(13, TOKENS, 1) + np.arange(n) * (1 + noise(14, TOKENS, 1) % 7)) % vocab
        falling = -np.sort(-logprobs(15, TOKENS, n), axis=1)
        arrays["sample_ids"] = np.where(cut, -1, own).astype(np.int32)
        arrays["sample_logprobs"] = np.where(cut, -np.inf, falling).astype(np.float32)
        arrays["sample_threshold"] = logprobs(16, TOKENS)
    if n := len(signal.temperatures):
        numbers = (noise(17, TOKENS, n) % 8192 - 4096) / 256
        arrays["log_normalisers"] = numbers.astype(np.float32)
    return Scores.of(arrays)


def written(name: str, codec: str, vocab: int) -> tuple[bytes, Renumbering | None]:
    """Return a shard of a signal's scores, and what its ids were renumbered by."""
    signal = SIGNALS[name]
    identity = ScorerIdentity(
        model={"weights": "golden"},
        engine="hf",
        engine_version="1",
        dtype="float32",
        quantization=None,
        tokenizer="t",
        template=None,
        vocab_size=vocab,
        codec=codec,
        signal=signal.words(),
    )
    found = scores(signal, vocab)
    by = None
    if codec == "packed-v1":
        ids = found.topk_ids if signal.k else np.asarray(found.candidate_ids)
        by = Renumbering.learn(ids[ids >= 0], vocab_size=vocab)
    table = table_of([f"{row:032x}" for row in range(len(LENGTHS))], found, LENGTHS, signal)
    return write_scores(table, identity, renumbering=by), by


def columns_digest(data: bytes) -> str:
    """Return the digest of a file's columns: names, types, lengths and values."""
    table = pq.read_table(pa.BufferReader(data)).replace_schema_metadata(None)
    return sha256(f"{table.schema}\n{table.to_pydict()!r}".encode())


@pytest.mark.parametrize(("name", "codec", "vocab"), GOLDEN)
def test_the_stored_columns_of_a_signal_never_change(name: str, codec: str, vocab: int) -> None:
    data, by = written(name, codec, vocab)
    columns, whole = GOLDEN[name, codec, vocab]
    assert columns_digest(data) == columns
    if pq.read_metadata(pa.BufferReader(data)).created_by == WRITER:
        assert sha256(data) == whole
    assert decode_scores(data, renumbering=by, where="x").num_rows == len(LENGTHS)


@pytest.mark.parametrize("change", [{"topk_logprobs": -0.5}, {"token_rank": 3}, {"draw_ids": 4}])
def test_another_value_gives_another_digest(change: dict[str, float]) -> None:
    signal = SIGNALS["all"]
    ((array, value),) = change.items()
    before = scores(signal, 1000)
    changed = before.arrays()[array].copy()
    changed[-1, ...] = value
    tables = [
        table_of(["a"], Scores.of({**before.arrays(), array: values}), np.array([TOKENS]), signal)
        for values in (before.arrays()[array], changed)
    ]
    first, second = (columns_digest(write_table(table, {})) for table in tables)
    assert first != second
