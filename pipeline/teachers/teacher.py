"""One teacher with one signal: who it is, whether it may score this student, where its cache is."""

from dataclasses import dataclass
from functools import partial

from pipeline.cache.scorers import stored_scorer
from pipeline.checkpoints.opening import opened_model
from pipeline.checkpoints.student import policy_of_round
from pipeline.engines.engine import Engine
from pipeline.engines.kept import lent
from pipeline.engines.lazy import LazyEngine, Lend, new_engine
from pipeline.engines.ledger import RunLedger
from pipeline.engines.opening import open_engine, scoring_version
from pipeline.engines.start import Note, Start
from pipeline.models.source import (
    ModelSource,
    find_model,
    load_settings,
    model_identity,
    whole_settings,
)
from pipeline.models.tokenizer import model_tokenizer, stored_tokenizer, vocabulary_size
from pipeline.models.tokenizeridentity import check_same_tokenizer, tokenizer_digest
from pipeline.runs.run import Run
from pipeline.store.records import create_record
from pipeline.teachers.limits import check_context, check_k, check_vocabulary, longest
from schemas.config.run import signal_of
from schemas.errors import ConfigError, IdentityError
from schemas.fingerprint import fingerprint
from schemas.keys import scorer_folder, scorer_key, teacher_key
from schemas.records.runs import TeacherRecord
from schemas.records.scores import ScorerIdentity


@dataclass(frozen=True)
class Scorer:
    """A teacher that has been found fit to score a run's student, not loaded yet."""

    name: str
    identity: ScorerIdentity
    source: ModelSource | None
    """The model; None where only stored scores are used."""

    @property
    def key(self) -> str:
        """Digest of the identity."""
        return self.identity.key

    @property
    def folder(self) -> str:
        """Key prefix of the scorer's cache."""
        return scorer_folder(self.key)

    def lazily(self, run: Run, note: Note) -> LazyEngine:
        """Return the teacher's engine, which its first use opens.

        On `hf` it may be the one that scored the round before, of the very same teacher.
        """
        lend: Lend = new_engine
        if run.config.score.engine == "hf":
            made_of = (self, run.config.score, longest(run))
            lend = partial(lent, place=f"teacher {self.name}", key=made_of)
        return LazyEngine(lambda: self.open(run, note), note, lend)

    def open(self, run: Run, note: Note) -> Engine:
        """Load the teacher.

        Args:
            run: the run.
            note: told of a start that takes long.

        Raises:
            ConfigError: the scorer is one of stored scores, or the model cannot be loaded.
            IdentityError: servers run another version than when the scorer was found.
        """
        if self.source is None:
            raise ConfigError(
                f"teachers.{self.name}.scores names scorer {self.key}, which lacks some of this "
                "round's sequences. Run `opd cache reprocess` again if its source has them, or "
                f"remove teachers.{self.name}.scores to let the teacher score them"
            )
        start = Start(
            self.source,
            run.config.score,
            dtype=self.identity.dtype,
            use="score",
            max_tokens=longest(run),
            identity=self.identity.model,
            ledger=RunLedger(run),
        )
        engine = open_engine(start, note)
        if engine.version != self.identity.engine_version:
            engine.close()
            raise IdentityError(
                f"the engine was {self.identity.engine_version} and is {engine.version} now: run "
                "the same command again"
            )
        return engine


def find_scorer(run: Run, round_index: int, teacher: str) -> Scorer:
    """Return the scorer of a teacher of the run, checked against the student before any work.

    Raises:
        ConfigError: no such teacher or model, a context too short, k above the vocabulary.
        IdentityError: tokenizers differ, the vocabulary is larger than the student's, or the
            teacher is not the one that the student was prepared with.
    """
    config = run.config
    section = config.teachers[teacher]
    _check_consistent(run, teacher)
    if section.scores is not None:
        return _fitting_scorer(run, round_index, teacher, section.scores)
    source = find_model(run.place, section, f"teachers.{teacher}")
    settings = load_settings(source)
    tokenizer = model_tokenizer(source)
    check_context(run, settings, label=f"teachers.{teacher}", scores=True)
    with opened_model(run, policy_of_round(run, round_index), weights=False) as policy:
        student = stored_tokenizer(policy)
        check_same_tokenizer(student, tokenizer, teacher_name=teacher, mode=section.tokenizer_check)
        student_vocab = int(load_settings(policy).vocab_size)
    check_vocabulary(teacher, vocabulary_size(tokenizer), student_vocab)
    vocab_size = min(int(settings.vocab_size), student_vocab)
    check_k(config.score.k, vocab_size)
    identity = ScorerIdentity(
        model=model_identity(source),
        engine=config.score.engine,
        engine_version=scoring_version(config.score, longest(run), source),
        dtype=section.dtype,
        quantization=_quantization(source),
        tokenizer=tokenizer_digest(tokenizer),
        template=None,
        vocab_size=vocab_size,
        codec=config.score.codec,
        signal=signal_of(config).words(),
        reuse=config.score.reuse,
    )
    return Scorer(teacher, identity, source)


def _fitting_scorer(run: Run, round_index: int, teacher: str, name: str) -> Scorer:
    """Return a scorer of the root, checked against the student without the teacher's model."""
    identity = stored_scorer(run.storage, name)
    section = run.config.teachers[teacher]
    with opened_model(run, policy_of_round(run, round_index), weights=False) as policy:
        student = stored_tokenizer(policy)
        vocab_size = int(load_settings(policy).vocab_size)
    digest = tokenizer_digest(student)
    if section.tokenizer_check == "content" and digest != identity.tokenizer:
        raise IdentityError(
            f"teachers.{teacher}.scores = {name!r} was scored with tokenizer {identity.tokenizer}, "
            f"but the student's is {digest}: its ids may mean other text"
        )
    check_vocabulary(teacher, identity.vocab_size, vocab_size)
    return Scorer(teacher, identity, None)


def pin_scorer(run: Run, scorer: Scorer) -> None:
    """Record which teacher stands behind a name of the run, and describe the scorer in its cache.

    Raises:
        IdentityError: the name stood for another teacher when the run began.
    """
    key = teacher_key(run.name, scorer.name)
    mine = TeacherRecord(model=scorer.identity.model, tokenizer=scorer.identity.tokenizer)
    if create_record(run.storage, key, mine) != mine:
        raise IdentityError(
            f"teachers.{scorer.name} is not the model that this run "
            f"began with: {run.storage.url(key)} holds another identity. Restore the model, or "
            "start a new run under another run.name"
        )
    create_record(run.storage, scorer_key(scorer.key), scorer.identity)


def _check_consistent(run: Run, teacher: str) -> None:
    known = run.config.student.sft_teacher
    if known is not None and known != teacher:
        raise IdentityError(
            f"the student was prepared with teacher {known!r} (student.sft_teacher), and "
            f"{teacher!r} is to score it: another teacher biases the gradient. Score with "
            f"{known!r}, or remove student.sft_teacher to allow it"
        )


def _quantization(source: ModelSource) -> str | None:
    """Return a digest of how a model, or its text part, is quantised; None where it is not."""
    whole = whole_settings(source)
    found = [
        getattr(part, "quantization_config", None) for part in (whole.get_text_config(), whole)
    ]
    return next((fingerprint(str(one)) for one in found if one is not None), None)
