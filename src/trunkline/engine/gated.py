"""What is to be known about a bundle that is served as its precision gate says."""

from collections.abc import Collection
from pathlib import Path

from trunkline.bundle.manifest import Manifest
from trunkline.engine.backends.base import Backend
from trunkline.engine.backends.choose import describe

_CPU_FACTS = Path("/proc/cpuinfo")
_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


def serving_notes(
    manifest: Manifest, backend: Backend, *, tasks: Collection[str] | None = None, cpu_facts: Path = _CPU_FACTS
) -> list[str]:
    """Messages for whoever starts an engine; none where nothing was gated or the backend does not follow the gate.

    Args:
        manifest: What is served.
        backend: Computes it.
        tasks: Which tasks; None for all.
        cpu_facts: Where Linux says what the processor can do.
    """
    trunk = manifest.trunk
    if trunk.gate is None or not backend.as_gated:
        return []
    chosen = {task: entry for task, entry in manifest.tasks.items() if tasks is None or task in tasks}
    precisions = {trunk.precision, *(entry.precision for entry in chosen.values() if entry.gate is not None)}
    notes = []
    ungated = [task for task, entry in chosen.items() if entry.gate is None]
    if ungated:
        notes.append(
            f"never judged on the {trunk.precision} trunk: {', '.join(ungated)}; served all the same; "
            "judge them with trunkline quantize"
        )
    if "bf16" in precisions and backend.precision == "fp32":
        notes.append("accepted in bf16, which this processor does not compute in: served in fp32")
    if "int8" in precisions and _saturates(cpu_facts):
        notes.append(
            "accepted in int8, but this processor lacks VNNI and AMX: sums may saturate, so answers may be worse than "
            "the gate measured; quantize on this machine, or serve with --precision fp32"
        )
    return notes


def describe_served(manifest: Manifest, backend: Backend) -> str:
    """For people, as `trunkline.engine.backends.choose.describe`: with what a gate accepted the trunk in."""
    accepted = manifest.trunk.gate is not None and backend.as_gated
    return describe(backend) + (f", trunk accepted in {manifest.trunk.precision}" if accepted else "")


def _saturates(cpu_facts: Path) -> bool:
    """Whether an x86 processor adds int8 products in 16 bits; False where nothing is known."""
    try:
        lines = cpu_facts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), None)
    return flags is not None and not _INT8_FLAGS & set(flags.split())
