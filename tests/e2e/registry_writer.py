"""Changes a registry at random until it is killed; prints the number of each entry once its change returned."""

import random
import sys
from pathlib import Path

from trunkline.bundle.registry import Registry
from trunkline.core.errors import BundleError, SpecError

SAID = {"who": "writer", "why": "until it is killed"}


def change(registry: Registry, branches: list[Path], rng: random.Random) -> None:
    """One change, which the rules may refuse."""
    versions = list(registry.state.tasks["intent"].versions)
    kind, version = rng.randrange(7), rng.choice(versions)
    if kind <= 1:
        registry.register(rng.choice(branches), **SAID)
    elif kind == 2:
        registry.activate("intent", version, **SAID)
    elif kind == 3:
        registry.canary("intent", version, rng.choice((0, 5, 50)), **SAID)
    elif kind == 4:
        registry.rollback("intent", **SAID)
    elif kind == 5:
        registry.remove("intent", version, **SAID)
    else:
        registry.prune()


def main(path: Path, branches: list[Path], rng: random.Random) -> None:
    """Change until killed."""
    registry = Registry.open(path)
    while True:
        try:
            change(registry, branches, rng)
        except (BundleError, SpecError) as error:
            if "cannot be" in str(error):
                raise
        sys.stdout.write(f"{registry.state.seq}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[3:]], random.Random(sys.argv[2]))
