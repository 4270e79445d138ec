"""YAML as people write it: read with care."""

from typing import Any

import msgspec

from trunkline.core.errors import SpecError

_DEPTH = 100  # The reader calls itself for each level; some ten thousand end the process.


def read_yaml(content: bytes, subject: str) -> Any:
    """Plain values of a YAML document.

    Args:
        content: Its bytes.
        subject: What messages are about.

    Raises:
        SpecError: It is not YAML, gives a key twice, or is nested too deep.
    """
    import yaml

    try:
        _check(content, subject)
        return msgspec.yaml.decode(content)
    except (msgspec.DecodeError, yaml.YAMLError) as error:
        raise SpecError(f"{subject}: not valid YAML ({error}); mend the file") from error


def _check(content: bytes, subject: str) -> None:
    """Refuse nesting that would end the process, and repeated keys, of which readers take the last in silence."""
    import yaml

    levels: list[list[str | None] | None] = []  # Of a mapping its keys and values in turn, of a sequence nothing.
    for event in yaml.parse(content, yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.CollectionEndEvent):
            levels.pop()
        if not isinstance(event, yaml.NodeEvent):
            continue
        inside = levels[-1] if levels else None
        if inside is not None:
            name = event.value if isinstance(event, yaml.ScalarEvent) else None
            if name is not None and len(inside) % 2 == 0 and name in inside[::2]:
                raise SpecError(f"{subject}: key {name!r} is given again in line {line}; give each key once")
            inside.append(name)
        if isinstance(event, yaml.CollectionStartEvent):
            levels.append([] if isinstance(event, yaml.MappingStartEvent) else None)
        if len(levels) > _DEPTH:
            raise SpecError(f"{subject}: line {line} is nested deeper than {_DEPTH} levels; mend the file")
