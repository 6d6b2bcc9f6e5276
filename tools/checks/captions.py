"""Captions that say nothing, or that are there more than once; and how many tokens they have."""

import math
import re
import unicodedata
from collections import Counter, defaultdict

import numpy as np

from data.tokens import PaddingTokenizer
from tools.checks.pictures import histogram
from tools.checks.section import EXAMPLES, Example, Section
from tools.checks.subject import Subject

MOST = 100_000  # captions that are compared and tokenised; of a larger set so many, evenly spaced
ALIKE = 0.9  # the words that two captions share, over those that either has, from which they count as nearly the same
COMPARED = 20_000_000  # pairs of captions after which no more are compared
LENGTHS = (8, 16, 32, 64, 77, 128, 256, 512)
AT_ONCE = 8192
# What stands where a caption should: its words, folded.
PLACEHOLDER = re.compile(
    r"((no|missing|empty|add|insert) )?(caption|description|text|title|report)( (here|missing|available|unavailable))?"
    r"|(not )?available|unavailable|unknown|untitled|none|null|nan|na|n a|tbd|todo|test|x+|lorem ipsum.*"
    r"|replace this.*|(in )?progress|pending|see (above|below|text)"
    r"|(fig(ure)?|image|picture|photo|img)( ?\w?\d*\w?)?"
)


def words(text: str) -> list[str]:
    """The words of a caption, without case and punctuation."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def read(subject: Subject) -> tuple[list[tuple[str, int]], list[str]]:
    """-> (split, number) and text of the captions of all splits, or of MOST of them."""
    keys = [(name, i) for name, split in subject.splits.items() for i in range(len(split.captions))]
    chosen = np.unique(np.linspace(0, len(keys) - 1, min(len(keys), MOST)).astype(np.int64)) if keys else []
    keys = [keys[i] for i in chosen]
    return keys, [subject.splits[name].captions[i] for name, i in keys]


def describe(subject: Subject) -> Section:
    """Empty captions, placeholders, and captions that are there more than once."""
    section = Section("Captions")
    keys, texts = read(subject)
    total = sum(len(split.captions) for split in subject.splits.values())
    section.say(f"{total:,} captions" + (f"; {len(texts):,} of them read, evenly spaced" if total > len(texts) else ""))

    def name(rows) -> str:
        ids = " = ".join(subject.splits[split].data.ids[i] for split, i in (keys[row] for row in rows[:4]))
        more = f" = ... ({len(rows):,})" if len(rows) > 4 else ""
        return f"{ids}{more}: {texts[rows[0]][:60]}"

    def shown(groups):
        for rows in groups:
            yield Example(" / ".join(dict.fromkeys(texts[row] for row in rows[:4])), [keys[row] for row in rows[:4]])

    folded = [" ".join(words(text)) for text in texts]
    empty = [[row] for row, text in enumerate(folded) if not text]
    section.find("captions hold no word", map(name, empty), examples=shown(empty))
    holders = [[row] for row, text in enumerate(folded) if text and PLACEHOLDER.fullmatch(text)]
    section.find("captions look like placeholders", map(name, holders), examples=shown(holders))
    exact = grouped(texts, [row for row, text in enumerate(folded) if text])
    section.find("captions are there more than once", map(name, exact), examples=shown(exact))
    firsts = sorted({texts[row]: row for row in reversed(range(len(texts))) if folded[row]}.values())
    same = grouped(folded, firsts)
    section.find("captions differ in case or punctuation alone", map(name, same), examples=shown(same))
    firsts = sorted({folded[row]: row for row in reversed(firsts)}.values())
    near, stopped = near_pairs([folded[row].split() for row in firsts])
    near = [(firsts[one], firsts[other]) for one, other in near]
    section.find(
        "pairs of captions are nearly the same",
        (f"{name([one])} / {name([other])}" for one, other in near),
        f" ({ALIKE:.0%} of their words)", examples=shown(near),
    )  # fmt: skip
    if stopped:
        section.note(f"after {COMPARED:,} comparisons of captions no more were made")
    return section


def grouped(texts: list[str], rows: list[int]) -> list[list[int]]:
    """The groups of `rows` with the same text, the largest first."""
    groups = defaultdict(list)
    for row in rows:
        groups[texts[row]].append(row)
    return sorted((group for group in groups.values() if len(group) > 1), key=len, reverse=True)


def near_pairs(captions: list[list[str]], alike: float = ALIKE) -> tuple[list[tuple[int, int]], bool]:
    """The pairs of captions (lists of words) whose sets of words have a Jaccard similarity of `alike` or more, and
    whether the search was given up after COMPARED comparisons.

    By prefix filtering (Bayardo, Ma, Srikant, WWW 2007), which finds all: two such sets share one of their rarest
    words, so that only captions that do are compared.
    """
    counts = Counter(word for caption in captions for word in set(caption))
    sets = [sorted(set(caption), key=lambda word: (counts[word], word)) for caption in captions]
    index, found, compared = defaultdict(list), [], 0
    for i in sorted(range(len(sets)), key=lambda i: len(sets[i])):
        size, members = len(sets[i]), set(sets[i])
        prefix = sets[i][: size - math.ceil(alike * size) + 1]
        candidates = {j for word in prefix for j in index[word] if len(sets[j]) >= alike * size}
        for word in prefix:
            index[word].append(i)
        compared += len(candidates)
        if compared > COMPARED:
            return found, True
        for j in candidates:
            shared = len(members.intersection(sets[j]))
            if shared >= alike * (size + len(sets[j]) - shared):
                found.append((min(i, j), max(i, j)))
    return sorted(found), False


def describe_lengths(subject: Subject, tokenizer, context_length: int) -> Section:
    """The captions' tokens, against --context-length."""
    section = Section("Caption lengths")
    keys, texts = read(subject)
    lengths, unknown = np.zeros(len(texts), np.int64), np.zeros(len(texts), bool)
    longest = 1 << 20  # tokens: no caption is cut, and the tokenizer does not warn
    for start in range(0, len(texts), AT_ONCE):
        if isinstance(tokenizer, PaddingTokenizer):
            lengths[start : start + AT_ONCE] = tokenizer.count(texts[start : start + AT_ONCE])
            continue
        ids = tokenizer(texts[start : start + AT_ONCE], truncation=True, max_length=longest)["input_ids"]
        lengths[start : start + len(ids)] = [len(one) for one in ids]
        unk = getattr(tokenizer, "unk_token_id", None)
        unknown[start : start + len(ids)] = [unk is not None and unk in one for one in ids]
    section.say("tokens with start and end: " + histogram(lengths, LENGTHS))
    section.say(f"median {np.median(lengths):.0f}, 95% have {np.percentile(lengths, 95):.0f} or fewer")
    order = np.argsort(-lengths, kind="stable")
    cut = order[lengths[order] > context_length]
    ids = [subject.splits[keys[row][0]].data.ids[keys[row][1]] for row in cut]
    section.find(
        "captions are cut", (f"{one}: {lengths[row]} tokens" for one, row in zip(ids, cut, strict=True)),
        f" to --context-length {context_length} ({len(cut) / len(texts):.1%})"
    )  # fmt: skip
    if not len(cut):
        section.say(f"none is longer than --context-length {context_length}")
    longest = [Example(f"{lengths[row]} tokens: {texts[row]}", [keys[row]]) for row in order[:EXAMPLES]]
    section.examples = {"the longest captions": longest}
    if unknown.any():
        text = f"{unknown.sum():,} captions ({unknown.mean():.1%}) have a token that the tokenizer does not know"
        (section.note if unknown.mean() > 0.05 else section.say)(text)
    return section
