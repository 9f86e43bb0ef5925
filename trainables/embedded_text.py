"""The built-in text: film reviews from a small grammar, with labels to fine-tune on, without to pre-train on.

What decides a label: an opinion word, turned round by a negation, outweighed across a contrast. Some
opinion words occur in validation and test only; the pre-training text shows what they are like. A few
labels are wrong on purpose, so that nobody reaches 100%.
"""

from __future__ import annotations

from random import Random
from typing import Final

LABELS: Final = ("negative", "positive")
SIZES: Final = {"train": 2000, "validation": 600, "test": 1000}
LABEL_NOISE: Final = 0.04

SEEN: Final = (
    "dull tedious awful clumsy shallow boring bland weak messy stale dreary hollow lifeless grating sloppy "
    "tiresome predictable pointless".split(),
    "superb moving clever gripping charming delightful brilliant witty fresh graceful tender thrilling "
    "elegant honest lively rich touching wonderful".split(),
)
UNSEEN: Final = (
    "dismal clunky insipid wooden muddled vapid leaden shoddy plodding".split(),
    "radiant poignant inventive riveting luminous sublime dazzling masterful engaging".split(),
)
REACTIONS: Final = (
    "i was bored|we left early|nobody laughed|i regret the ticket|the audience yawned".split("|"),
    (
        "i was delighted|we stayed for the credits|everybody laughed|i would see it again|"
        "the audience cheered"
    ).split("|"),
)
ASPECTS: Final = (
    "plot acting script ending music cast pacing dialogue story direction camerawork humor opening editing "
    "scenery romance"
).split()
NEGATIONS: Final = ("not", "never", "hardly", "far from", "anything but")
INTENSIFIERS: Final = ("very", "really", "quite", "utterly", "rather", "truly")
FILLERS: Final = (
    "we saw it on a monday|it runs for two hours|the theater was half full|my brother came along|"
    "it opened in june|the director is from spain|it is based on a novel|there is a long chase"
).split("|")


def embedded_splits() -> dict[str, tuple[list[str], list[int]]]:
    """Generate train, validation and test: texts and label indices. No text stands in two splits or twice."""
    random = Random("embedded dataset")
    used: set[str] = set()
    splits = {}
    for name, size in SIZES.items():
        texts: list[str] = []
        labels: list[int] = []
        while len(texts) < size:
            text, label = _review(random, with_unseen=name != "train")
            if text in used:
                continue
            used.add(text)
            texts.append(text)
            labels.append(1 - label if random.random() < LABEL_NOISE else label)
        splits[name] = (texts, labels)
    return splits


def pretraining_documents(count: int) -> list[str]:
    """Generate unlabelled reviews of several sentences in one mood, in which words of a kind keep company."""
    random = Random("pre-training text")
    return [_document(random) for _ in range(count)]


def _document(random: Random) -> str:
    """Return opinions of one mood, each followed sooner or later by a reaction that shows it."""
    mood = random.randrange(2)
    sentences = []
    for _ in range(random.randint(2, 3)):
        draw = random.random()
        if draw < 0.5:
            words = (_word(random, mood, with_unseen=True) for _ in range(random.randint(2, 4)))
            sentences.append(f"the {random.choice(ASPECTS)} was {' and '.join(words)}")
        else:
            sentences.append(_verdict(random, mood, with_unseen=True))
        if random.random() < 0.6:
            sentences.append(random.choice(REACTIONS[mood]))
        if random.random() < 0.15:
            sentences.append(random.choice(FILLERS))
    return " . ".join(sentences) + " ."


def _review(random: Random, with_unseen: bool) -> tuple[str, int]:
    """Return a sentence and its true label."""
    label = random.randrange(2)
    text = _verdict(random, label, with_unseen)
    if random.random() < 0.5:
        filler = random.choice(FILLERS)
        text = f"{filler} and {text}" if random.random() < 0.5 else f"{text} , and {filler}"
    return f"{text} .", label


def _verdict(random: Random, label: int, with_unseen: bool) -> str:
    """Return an opinion, perhaps set against one that counts less."""
    verdict = _opinion(random, label, with_unseen)
    if random.random() < 0.6:
        return verdict
    concession = _opinion(random, 1 - label, with_unseen)
    return random.choice(
        (
            f"{concession} , but {verdict}",
            f"{concession} ; still , {verdict}",
            f"although {concession} , {verdict}",
            f"{verdict} , although {concession}",
            f"{verdict} , even if {concession}",
        )
    )


def _opinion(random: Random, label: int, with_unseen: bool) -> str:
    """Return a clause of the given polarity, by a word of it or by a negated one of the other."""
    negated = random.random() < 0.3
    word = _word(random, 1 - label if negated else label, with_unseen)
    parts = ["the", random.choice(ASPECTS), "was"]
    if negated:
        parts.append(random.choice(NEGATIONS))
    if random.random() < 0.35:
        parts.append(random.choice(INTENSIFIERS))
    return " ".join((*parts, word))


def _word(random: Random, label: int, with_unseen: bool) -> str:
    if with_unseen and random.random() < 0.25:
        return random.choice(UNSEEN[label])
    return random.choice(SEEN[label])
