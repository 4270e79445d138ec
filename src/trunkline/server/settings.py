"""How a server is set up; every number has a unit in its name."""

from dataclasses import dataclass, field
from pathlib import Path

from trunkline.core.errors import SpecError


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What one request may bring; checked before anything is tokenized.

    Attributes:
        body_bytes: Most bytes of a body, archives excepted.
        texts: Most texts or pairs.
        text_characters: Most characters of one text.
        characters: Most characters of all texts together.
        read_s: How long a client may take to send a body, and how long it may leave an answer unread.
        archive_bytes: Most bytes of an uploaded branch.
    """

    body_bytes: int = 4 * 2**20
    texts: int = 512
    text_characters: int = 20_000
    characters: int = 1_000_000
    read_s: float = 10.0
    archive_bytes: int = 2 * 2**30

    def __post_init__(self) -> None:
        """Refuse what would refuse everything.

        Raises:
            SpecError: A limit is below 1.
        """
        for name in ("body_bytes", "texts", "text_characters", "characters", "archive_bytes"):
            if getattr(self, name) < 1:
                raise SpecError(f"server: the limit of {name} is {getattr(self, name)}; choose 1 or more")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a server is told.

    Attributes:
        host: Address to listen on.
        port: For HTTP; 0 takes a free one.
        grpc_port: For gRPC; None opens none, 0 takes a free one.
        keys: File with API keys; None with no keys in the environment either leaves inference open.
        limits: Of requests.
        deadline_ms: Of requests that state none.
        max_wait_ms: A request that would wait longer than this before it runs is refused.
        cache_bytes: Memory for answers to texts that are asked again.
        ready_versions: Of each task so many versions are kept loaded besides those that answer.
        max_branch_ms: A branch that takes longer for one text is not registered.
        sources: Folders and addresses (``s3://bucket/prefix``) that branches may be registered from.
        cors_origins: Pages of which origins may ask; none by default.
        drain_s: After SIGTERM: how long the server says that it is not ready before it stops to listen.
        access_log: Whether every request is logged, not failed ones alone.
        n_threads: That compute; None takes one for each processor.
        public: Whether an open server may listen on more than the loopback address.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = 8001
    keys: Path | None = None
    limits: RequestLimits = field(default_factory=RequestLimits)
    deadline_ms: float = 10_000.0
    max_wait_ms: float = 1_000.0
    cache_bytes: int = 64 * 2**20
    ready_versions: int = 2
    max_branch_ms: float = 200.0
    sources: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    drain_s: float = 0.0
    access_log: bool = False
    n_threads: int | None = None
    public: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            SpecError: A number lies outside its range.
        """
        for name, lowest in (
            ("deadline_ms", 1),
            ("max_wait_ms", 1),
            ("cache_bytes", 0),
            ("ready_versions", 0),
            ("drain_s", 0),
        ):
            if getattr(self, name) < lowest:
                raise SpecError(f"server: {name} is {getattr(self, name)}; choose {lowest} or more")
        for name in ("port", "grpc_port"):
            if not 0 <= (getattr(self, name) or 0) <= 65_535:
                raise SpecError(f"server: {name} is {getattr(self, name)}; choose 0 (any free one) to 65535")
