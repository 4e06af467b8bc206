"""Fixtures of all tests: a clean environment, S3 servers and storage roots.

Promises: no credential, endpoint or model hub of the developer is used; each test gets a fresh
prefix. The servers start on first use and end with the session.
"""

import functools
import gc
import logging
import multiprocessing
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore.session  # type: ignore[import-untyped]  # it ships no types
import fsspec
import pytest
from hypothesis import settings
from moto.server import ThreadedMotoServer

from pipeline.store.storage import Storage
from schemas.config.storage import StorageSection
from tests.support.airflowhost import AirflowHome, AirflowRuns
from tests.support.faults import FaultProxy
from tests.support.runs import Cli, Quickstart, finish, start
from tests.support.servers import BUCKET, REGION, S3Account, SeaweedServer, free_port, weed_binary
from tests.support.warm import WarmGate

if TYPE_CHECKING:
    from pipeline.models.source import ModelSource
    from tests.support.servergolden import FakeMaker

TESTS = Path(__file__).parent
HYGIENE = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "NO_PROXY": "127.0.0.1,localhost",
}
LIBRARY_PATH = os.environ.get("LD_LIBRARY_PATH")
if multiprocessing.parent_process() is None:  # a spawned child keeps what its test has set
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        del os.environ[name]
    os.environ.update(HYGIENE)
    fsspec.config.conf.clear()  # read from FSSPEC_* variables and files when fsspec was imported

# botocore parses megabytes of JSON for each new client, and here each test has a new one
botocore.session.create_loader = functools.cache(botocore.session.create_loader)

settings.register_profile("opd", deadline=None, derandomize=True, database=None)
settings.load_profile("opd")

QUICK = StorageSection(retry_s=20.0, connect_timeout_s=2.0, read_timeout_s=10.0)
"""Settings that give up within a test's patience."""

ProxyFactory = Callable[..., FaultProxy]
UseS3 = Callable[[S3Account], str]


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    """Return a running SeaweedFS with bucket `opd`."""
    try:
        weed_binary()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    server = SeaweedServer(tmp_path_factory.mktemp("seaweed"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Account]:
    """Return an account of a moto server in this process with bucket `opd`; any key opens it."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer("127.0.0.1", free_port(), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    account = S3Account(f"http://{host}:{port}")
    account.client().call_s3("create_bucket", Bucket=BUCKET)
    try:
        yield account
    finally:
        server.stop()


@pytest.fixture(scope="session")
def careless_server(moto_server: S3Account) -> Iterator[S3Account]:
    """Return an account of a store that ignores If-None-Match and If-Match."""
    proxy = FaultProxy(moto_server.endpoint, dropped_headers=("If-None-Match", "If-Match"))
    try:
        yield moto_server.at(proxy.endpoint)
    finally:
        proxy.close()


@pytest.fixture
def fault_proxy() -> Iterator[ProxyFactory]:
    """Return a maker of fault proxies: `fault_proxy(endpoint, mix={…}, seed=0)`."""
    proxies: list[FaultProxy] = []

    def make(endpoint: str, mix: Mapping[str, float] | None = None, *, seed: int = 0) -> FaultProxy:
        proxies.append(FaultProxy(endpoint, mix=mix, seed=seed))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.close()


@pytest.fixture
def use_s3(monkeypatch: pytest.MonkeyPatch) -> UseS3:
    """Return a function that points this process and its children at an account; gives a root."""

    def use(account: S3Account) -> str:
        for key, value in account.environ().items():
            monkeypatch.setenv(key, value)
        return f"s3://{account.bucket}/{uuid.uuid4().hex}"

    return use


@pytest.fixture
def moto_storage(moto_server: S3Account, use_s3: UseS3) -> Storage:
    """Return a fresh prefix on moto: S3 without a process of its own."""
    return Storage(use_s3(moto_server), QUICK)


@pytest.fixture
def s3_storage(s3_server: SeaweedServer, use_s3: UseS3) -> Storage:
    """Return a fresh prefix on SeaweedFS."""
    return Storage(use_s3(s3_server.account), QUICK)


@pytest.fixture(params=["memory", "local", "moto", pytest.param("seaweed", marks=pytest.mark.s3)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Return a fresh prefix on each kind of store in turn."""
    if request.param == "memory":
        return Storage(f"memory://{uuid.uuid4().hex}", QUICK)
    if request.param == "local":
        return Storage(str(tmp_path / "store"), QUICK)
    name = {"moto": "moto_storage", "seaweed": "s3_storage"}[request.param]
    made = request.getfixturevalue(name)
    assert isinstance(made, Storage)
    return made


@pytest.fixture
def memory() -> Storage:
    """Return a fresh prefix in memory."""
    return Storage(f"memory://{uuid.uuid4().hex}", QUICK)


@pytest.fixture
def local_storage(tmp_path: Path) -> Storage:
    """Return a fresh folder."""
    return Storage(str(tmp_path / "store"), QUICK)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return the command line, run in this process."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return Cli(capsys)


@pytest.fixture(autouse=True)
def library_path() -> None:
    """Take back what imports leave, as cv2 does: processes would be started with another path."""
    if LIBRARY_PATH is None:
        os.environ.pop("LD_LIBRARY_PATH", None)
    else:
        os.environ["LD_LIBRARY_PATH"] = LIBRARY_PATH


@pytest.fixture(scope="session", autouse=True)
def stages_beside_flask() -> Iterator[None]:
    """Let the stages of all tests start vLLM, where they are to run on it."""
    with ExitStack() as stack:
        if os.environ.get("OPD_TEST_ENGINE") == "vllm":
            stack.enter_context(_flask_context())
        yield


@pytest.fixture(scope="module")
def beside_flask() -> Iterator[None]:
    """Let vLLM start where moto has loaded flask.

    vLLM's start on a CPU looks into every loaded module, and flask's `current_app`, `request` and
    the like raise when they are looked at outside a request.
    """
    with _flask_context():
        yield


def _flask_context() -> AbstractContextManager[object]:
    import flask

    context: AbstractContextManager[object] = flask.Flask(__name__).test_request_context()
    return context


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> "ModelSource":
    """Return a tiny model on disk."""
    from pipeline.models.source import ModelSource
    from tests.support.tiny import make_model  # imports torch, after HYGIENE has set its threads

    return ModelSource(str(make_model(tmp_path_factory.mktemp("model"))), None, False)


@pytest.fixture
def fake() -> "Iterator[FakeMaker]":
    """Return a maker of stand-ins for vLLM's server, with the vocabulary of a tiny model."""
    from pipeline.quickstart.addition import VOCABULARY
    from tests.support.fakeserver import FakeVllm

    made: list[FakeVllm] = []

    def make(**settings: Any) -> FakeVllm:
        made.append(FakeVllm(len(VOCABULARY), **settings))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny run of two rounds that went undisturbed; copy it to change it."""
    from tests.support.tiny import write_run  # imports torch, after HYGIENE has set its threads

    folder = tmp_path_factory.mktemp("finished")
    config = write_run(folder, changes={"train.save_steps": 1})
    outcome = finish(start("run", "-c", config, "--json"))
    assert outcome.code == 0, outcome.stderr
    return folder


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished run's folder, to be damaged; its root is the copy's own."""
    from tests.support.tiny import write_run

    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    write_run(copy, changes={"train.save_steps": 1})
    return copy


@pytest.fixture(scope="session")
def warm_gate() -> Iterator[WarmGate | None]:
    """Return what gives other programs warm processes, where there are such."""
    gate = WarmGate() if sys.platform == "linux" else None
    yield gate
    if gate is not None:
        gate.close()


@pytest.fixture(scope="session")
def warm_opd(warm_gate: WarmGate | None) -> str:
    """Return words that other programs can run as `opd`, in processes that are warm."""
    return warm_gate.opd if warm_gate else str(Path(sys.executable).parent / "opd")


@pytest.fixture(scope="session")
def warm_python(warm_gate: WarmGate | None) -> str:
    """Return a program that stands for Python with `-P -m cli.main`: `opd` that is warm."""
    return warm_gate.python if warm_gate else sys.executable


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory, warm_opd: str) -> Iterator[AirflowRuns]:
    """Return an Airflow that runs DAGs."""
    runs = AirflowRuns(AirflowHome(tmp_path_factory.mktemp("airflow"), opd=warm_opd).prepare())
    yield runs
    runs.close()


@pytest.fixture(scope="session")
def quickstart_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Quickstart]:
    """Return a quickstart that was started in a process of its own."""
    folder = tmp_path_factory.mktemp("quickstart") / "demo"
    process = start("quickstart", folder, "--json", warm=False)  # as a user starts it
    yield Quickstart(folder, process)
    process.kill()
    process.wait()


FROZEN = [0]
"""Modules that were there when the collector was last told to leave them alone."""

MANY_MODULES = 500
"""As many as a start of vLLM imports, whose objects take a third of a second to look through."""

LONG = (
    *("quickstart/test_quickstart.py", "airflow/test_airflow_live.py", "bad/test_bad.py"),
    *("engines/vllm/test_arguments.py", "engines/server/test_golden.py"),
    *("engines/vllm/test_stages.py", "engines/vllm/test_slot.py", "airflow/test_airflow_dags.py"),
    *("learner/test_ranks.py", "system/test_chaos.py", "system/test_benchmarks.py"),
    *("zoo/test_zoo.py", "stages/test_score.py", "airflow/test_airflow_rounds.py"),
    *("stages/test_rounds.py", "engines/server/test_process.py", "learner/test_lorarun.py"),
    *("cache/test_sameweights.py", "store/test_storage.py", "upkeep/test_reprocess.py"),
    *("engines/vllm/test_engine.py", "engines/vllm/test_marks.py", "zoo/test_vllm.py"),
    *("engines/vllm/test_host.py", "stages/test_train.py", "system/test_crash.py"),
    *("rewards/test_graders.py", "runs/test_gate.py", "system/test_interrupt.py"),
    *("doctor/test_doctor.py", "system/test_warm.py", "stages/test_evaluate.py"),
)
"""Files that take longest: they come first, so that all processes end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of long files first."""
    places = {TESTS / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


def pytest_collection_finish() -> None:
    """Spare what libraries do again and again for nobody.

    The garbage collector looks through all that was imported; transformers writes each
    configuration out as JSON for its log.
    """
    if "transformers" in sys.modules:
        sys.modules["transformers"].PreTrainedConfig.__repr__ = object.__repr__
    freeze()


def freeze() -> None:
    """Have the collector leave alone what is there now."""
    gc.collect()
    gc.freeze()
    FROZEN[0] = len(sys.modules)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, None, None]:
    """Make what a file leaves cost the next ones nothing, nor what a test has imported.

    An engine that is closed runs the collector, which would look through all of it; and each
    listing in memory looks through all that is stored there.
    """
    yield
    ends = nextitem is None or nextitem.path != item.path
    if ends or len(sys.modules) - FROZEN[0] > MANY_MODULES:
        freeze()
    if ends:
        fsspec.filesystem("memory").rm("/", recursive=True)
