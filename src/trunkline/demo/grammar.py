"""Utterances to an assistant, made from the templates and values of ``grammar.yaml``."""

import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Literal, TypeAlias

import msgspec

from trunkline.core.specs import Spec, convert_spec

Part: TypeAlias = Literal["train", "dev"]

MAX_WORDS = 18
_HELD_OUT_SHARE = 0.2
_MARKER_SHARE = 0.6
_TYPO_SHARE = 0.04
_ALTERNATIVES = re.compile(r"\(([^()]*)\)")
_SLOT = re.compile(r"\{([a-z]+)\}")


class Values(Spec, frozen=True, kw_only=True):
    """Values of one slot, separated by ``|``.

    Attributes:
        train: Values for both parts.
        dev: Values that only dev sees.
        topic: A topic that each of them brings.
        urgency: What each of them adds to the urgency score.
    """

    train: str
    dev: str
    topic: str | None = None
    urgency: float = 0.0


class Frame(Spec, frozen=True, kw_only=True):
    """One intent and the ways to say it.

    Attributes:
        intent: The intent's name.
        domain: The domain it belongs to.
        topics: Topics it always has.
        urgency: Its score, 0 to 10, when nothing else speaks of haste.
        train: Templates for both parts.
        dev: Templates that only dev sees.
        paraphrases: Whether templates with the same slots mean the same.
    """

    intent: str
    domain: str
    topics: tuple[str, ...]
    urgency: float
    train: tuple[str, ...]
    dev: tuple[str, ...]
    paraphrases: bool = False


class Marker(Spec, frozen=True, kw_only=True):
    """Words before or after an utterance that shift its urgency score; zero for mere politeness."""

    shift: float
    where: Literal["before", "after"]
    train: str
    dev: str


class Grammar(Spec, frozen=True, kw_only=True):
    """All of ``grammar.yaml``."""

    slots: dict[str, tuple[Values, ...]]
    frames: tuple[Frame, ...]
    markers: tuple[Marker, ...]
    joins: str


@dataclass(frozen=True, slots=True)
class Filling:
    """One value in a slot."""

    words: tuple[str, ...]
    topic: str | None
    urgency: float


@dataclass(frozen=True, slots=True)
class Utterance:
    """What somebody says, and everything that is true of it before noise.

    Attributes:
        words: The words; joined with single spaces they are the text.
        tags: An IOB2 tag for each word.
        frame: Where the words come from.
        fillings: What stands in each slot.
        urgency: 0 to 10.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    frame: Frame
    fillings: Mapping[str, Filling]
    urgency: float

    @property
    def text(self) -> str:
        """The words as one string."""
        return " ".join(self.words)

    @property
    def topics(self) -> frozenset[str]:
        """Topics of the intent and of the values."""
        return frozenset(self.frame.topics) | {f.topic for f in self.fillings.values() if f.topic is not None}


def read_grammar() -> Grammar:
    """The grammar that comes with the package."""
    source = resources.files("trunkline.demo") / "grammar.yaml"
    return convert_spec(msgspec.yaml.decode(source.read_bytes()), Grammar, "grammar.yaml")


@dataclass(frozen=True, slots=True)
class Speaker:
    """Says things at random.

    Attributes:
        grammar: What can be said.
        rng: The only source of chance; the same state gives the same utterances.
        part: "dev" mixes in templates, values and markers that "train" never has.
    """

    grammar: Grammar
    rng: random.Random
    part: Part

    def say(self, frame: Frame, *, known: Mapping[str, Filling] = MappingProxyType({})) -> Utterance:
        """One utterance of a frame, at most `MAX_WORDS` words long.

        Args:
            frame: The intent.
            known: What to put into slots; other slots are filled at random.
        """
        while True:
            template = self._spell_out(self._pick(frame.train, frame.dev))
            fillings = {name: known.get(name) or self.fill(name) for name in _SLOT.findall(template)}
            words, tags = _fill_template(template, fillings)
            if len(words) <= MAX_WORDS:
                break
        urgency = frame.urgency + sum(filling.urgency for filling in fillings.values())
        return Utterance(words, tags, frame, fillings, _to_scale(urgency))

    def fill(self, slot: str) -> Filling:
        """A random value for a slot; groups of values are weighted by their size."""
        groups = self.grammar.slots[slot]
        group = self.rng.choices(groups, weights=[len(_split(g.train)) for g in groups])[0]
        value = self._pick(_split(group.train), _split(group.dev))
        return Filling(tuple(value.split()), group.topic, group.urgency)

    def dress(self, utterance: Utterance) -> Utterance:
        """The utterance as somebody might put it: with words of haste or patience, a capital or none, a typing slip."""
        words, tags, shift = utterance.words, utterance.tags, 0.0
        for where in ("before", "after"):
            if self.rng.random() >= _MARKER_SHARE / 2:
                continue
            # Nobody asks for haste and patience in one breath.
            fitting = [m for m in self.grammar.markers if m.where == where and m.shift * shift >= 0]
            marker = self.rng.choice(fitting)
            extra = tuple(self._pick(_split(marker.train), _split(marker.dev)).split())
            if len(words) + len(extra) > MAX_WORDS:
                continue
            outside = ("O",) * len(extra)
            words, tags = (extra + words, outside + tags) if where == "before" else (words + extra, tags + outside)
            shift += marker.shift
        words = self._type(words, tags)
        return Utterance(words, tags, utterance.frame, utterance.fillings, _to_scale(utterance.urgency + shift))

    def join(self) -> tuple[str, ...]:
        """Words between two wishes in one breath."""
        return tuple(self.rng.choice(_split(self.grammar.joins)).split())

    def _pick(self, common: tuple[str, ...], held_out: tuple[str, ...]) -> str:
        if self.part == "dev" and self.rng.random() < _HELD_OUT_SHARE:
            return self.rng.choice(held_out)
        return self.rng.choice(common)

    def _spell_out(self, template: str) -> str:
        return _ALTERNATIVES.sub(lambda match: self.rng.choice(match.group(1).split("|")), template)

    def _type(self, words: tuple[str, ...], tags: tuple[str, ...]) -> tuple[str, ...]:
        typed = list(words)
        plain = [i for i, (word, tag) in enumerate(zip(words, tags, strict=True)) if tag == "O" and len(word) > 4]
        if plain and self.rng.random() < _TYPO_SHARE:
            i, at = self.rng.choice(plain), self.rng.randrange(1, 3)
            typed[i] = typed[i][:at] + typed[i][at + 1] + typed[i][at] + typed[i][at + 2 :]
        if self.rng.random() < 0.5:
            return tuple(word.lower() for word in typed)
        return (typed[0][0].upper() + typed[0][1:], *typed[1:])


def _split(values: str) -> tuple[str, ...]:
    return tuple(value.strip() for value in values.split("|"))


def _to_scale(urgency: float) -> float:
    return min(10.0, max(0.0, urgency))


def _fill_template(template: str, fillings: Mapping[str, Filling]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    words: list[str] = []
    tags: list[str] = []
    for piece in template.split():
        slot = _SLOT.fullmatch(piece)
        if slot is None:
            words.append(piece)
            tags.append("O")
            continue
        name, value = slot.group(1), fillings[slot.group(1)].words
        if words and words[-1] == "a":
            words[-1] = _article(value)
        words.extend(value)
        tags.extend(_tags(name, len(value)))
    return tuple(words), tuple(tags)


def _article(value: tuple[str, ...]) -> str:
    return "an" if value[0][0].lower() in "aeiou" else "a"


def _tags(name: str, n_words: int) -> Iterable[str]:
    return [f"B-{name}", *[f"I-{name}"] * (n_words - 1)]
