"""Near-duplicates, and splits that never come between them. Decided by hashes of ids, so that they stay the same."""

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from finetrap.task import Example

NEAR_DUPLICATE = 0.6
"""Jaccard similarity of word trigrams, numbers masked, from which two questions count as one."""
BOILERPLATE_SHARE = 0.2
"""Of the questions: a trigram in more of them (and in more than `BOILERPLATE_LEAST`) belongs to a template or to
instructions that all have, and tells nothing of likeness."""
BOILERPLATE_LEAST = 20


def _uniform(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def sample(examples: Sequence[Example], limit: int | None) -> tuple[Example, ...]:
    """The first `limit` examples in an order decided by their ids' hashes."""
    return tuple(sorted(examples, key=lambda e: _uniform(f"order {e.id}"))[:limit])


def sample_items(examples: Sequence[Example], limit: int | None) -> tuple[Example, ...]:
    """All examples of the first `limit` test items in such an order: of examples, or of groups where there are any."""
    items = sorted({_item(e) for e in examples}, key=lambda item: _uniform(f"order {item}"))
    chosen = set(items[:limit])
    return tuple(e for e in sample(examples, None) if _item(e) in chosen)


def count_items(examples: Iterable[Example]) -> int:
    """How many test items they make."""
    return len({_item(example) for example in examples})


def _item(example: Example) -> str:
    return example.group or example.id


def carve(examples: Sequence[Example], share: float, salt: str) -> tuple[list[Example], list[Example]]:
    """What is kept, and about `share` of it cut off; near-duplicates, and examples of one group, stay on one side.

    Neither is empty where there are two that are not alike.
    """
    groups = {_uniform(f"{salt} {cluster[0].id}"): cluster for cluster in clusters(examples)}
    cut = {place for place in groups if place < share} or ({min(groups)} if len(groups) > 1 else set())
    if len(groups) > 1 and len(cut) == len(groups):
        cut.remove(max(cut))
    sides: tuple[list[Example], list[Example]] = ([], [])
    for place, cluster in groups.items():
        sides[place in cut].extend(cluster)
    return sides


def near_overlap(train: Sequence[Example], test: Sequence[Example]) -> int:
    """How many test items differ little from a train example that asks something else, or are of one group with it."""
    asked = {normalise(example.asked) for example in test}
    in_test = {example.id for example in test}
    different = [example for example in train if normalise(example.asked) not in asked]
    return len(
        {
            _item(example)
            for cluster in (clusters([*different, *test]) if test else [])
            if any(example.id not in in_test for example in cluster)
            for example in cluster
            if example.id in in_test
        }
    )


def normalise(text: str) -> str:
    """Lower case, letters and digits only, single spaces; what has none of these stays as it is."""
    return " ".join(re.findall(r"\w+", text.lower())) or text.strip()


def clusters(examples: Sequence[Example]) -> list[list[Example]]:
    """Examples grouped so that near-duplicates share a group, each in order of appearance.

    What is of one group from the start stays together. Similarity at `NEAR_DUPLICATE` or more joins two. Numbers are
    masked, since many questions differ in nothing else; what most questions share counts for nothing, and where a
    question is no more than that, only its exact text is like it. Exact, by prefix filtering (Bayardo et al., 2007): of
    two sets as similar as that, with their shingles sorted from rare to common, the first few hold one in common.
    """
    parent = list(range(len(examples)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    shingle_sets = [_shingles(e.asked) for e in examples]
    frequency = Counter(shingle for shingles in shingle_sets for shingle in shingles)
    limit = max(BOILERPLATE_LEAST, BOILERPLATE_SHARE * len(examples))
    boilerplate = {shingle for shingle, count in frequency.items() if count > limit}
    if boilerplate:
        shingle_sets = [
            shingles - boilerplate or frozenset([f"= {normalise(e.asked)}"])
            for shingles, e in zip(shingle_sets, examples, strict=True)
        ]
        frequency = Counter(shingle for shingles in shingle_sets for shingle in shingles)
    holders: dict[str, list[int]] = defaultdict(list)
    for i, shingles in enumerate(shingle_sets):
        rarest = sorted(shingles, key=lambda shingle: (frequency[shingle], shingle))
        rarest = rarest[: len(rarest) - math.ceil(NEAR_DUPLICATE * len(rarest)) + 1]
        for j in {j for shingle in rarest for j in holders[shingle]}:
            if len(shingles & shingle_sets[j]) >= NEAR_DUPLICATE * len(shingles | shingle_sets[j]):
                first, second = sorted((root(i), root(j)))
                parent[second] = first
        for shingle in rarest:
            holders[shingle].append(i)
    given: dict[str, int] = {}
    for i, example in enumerate(examples):
        if example.group:
            first, second = sorted((root(i), root(given.setdefault(example.group, i))))
            parent[second] = first
    groups: dict[int, list[Example]] = defaultdict(list)
    for i, example in enumerate(examples):
        groups[root(i)].append(example)
    return list(groups.values())


def _shingles(text: str) -> frozenset[str]:
    words = [re.sub(r"\d+", "0", word) for word in normalise(text).split()]
    return frozenset(" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2)))
