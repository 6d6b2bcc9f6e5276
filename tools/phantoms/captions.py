"""Sentences from templates, and the keywords of a sentence."""

import re

STOPWORDS = set("a an and are as at by for from in is it its no of on or over that the this to was were with".split())


def say(template, rng, **words):
    """Fill in <name>s, then choose one of each {this|that}, inner braces first."""
    while "<" in template:
        template = re.sub(r"<(\w+)>", lambda m: words[m[1]], template)
    while "{" in template:
        template = re.sub(r"\{([^{}]*)\}", lambda m: str(rng.choice(m[1].split("|"))), template)
    template = re.sub(r" +", " ", template).strip()
    return template[0].upper() + template[1:]


def keywords(caption, rng):
    """Words of a caption as ROCO gives them: lower case, no stop words, no final s, in no order."""
    words = {w.removesuffix("s") for w in re.findall(r"[a-z]+", caption.lower().replace("-", "")) if w not in STOPWORDS}
    return [str(w) for w in rng.permutation(sorted(words))]
