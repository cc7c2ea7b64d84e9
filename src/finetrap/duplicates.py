"""Near-duplicates, and splits that never come between them. Decided by hashes of ids, so that they stay the same."""

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from finetrap.task import Example

NEAR_DUPLICATE = 0.6
"""Jaccard similarity of word trigrams, numbers masked, from which two questions count as one."""


def _uniform(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def sample(examples: Sequence[Example], limit: int | None) -> tuple[Example, ...]:
    """The first `limit` examples in an order decided by their ids' hashes."""
    return tuple(sorted(examples, key=lambda e: _uniform(f"order {e.id}"))[:limit])


def carve(examples: Sequence[Example], share: float, salt: str) -> tuple[list[Example], list[Example]]:
    """What is kept, and about `share` of it cut off; near-duplicates stay on one side."""
    kept: list[Example] = []
    cut: list[Example] = []
    for cluster in clusters(examples):
        (cut if _uniform(f"{salt} {cluster[0].id}") < share else kept).extend(cluster)
    return kept, cut


def normalise(text: str) -> str:
    """Lower case, letters and digits only, single spaces; what has none of these stays as it is."""
    return " ".join(re.findall(r"\w+", text.lower())) or text.strip()


def clusters(examples: Sequence[Example]) -> list[list[Example]]:
    """Examples grouped so that near-duplicates share a group, each in order of appearance.

    Similarity at `NEAR_DUPLICATE` or more joins two groups. Numbers are masked, since many questions differ in
    nothing else. Exact, by prefix filtering (Bayardo et al., 2007): of two sets as similar as that, with their
    shingles sorted from rare to common, the first few hold one in common.
    """
    parent = list(range(len(examples)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    shingle_sets = [_shingles(e.asked) for e in examples]
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
    groups: dict[int, list[Example]] = defaultdict(list)
    for i, example in enumerate(examples):
        groups[root(i)].append(example)
    return list(groups.values())


def _shingles(text: str) -> frozenset[str]:
    words = [re.sub(r"\d+", "0", word) for word in normalise(text).split()]
    return frozenset(" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2)))
