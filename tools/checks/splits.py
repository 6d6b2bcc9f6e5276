"""What the two splits of a run share: images, captions, articles, patients."""

import numpy as np

from data.sets import Labelled
from evaluation import audit
from tools.checks.duplicates import Duplicates, names
from tools.checks.section import Example, Section, logged
from tools.checks.subject import Subject


def describe(args, subject: Subject, duplicates: Duplicates) -> Section | None:
    """None for a single split."""
    if len(subject.splits) < 2:
        return None
    section = Section("Across the splits")
    (first, one), (second, other) = subject.splits.items()
    both = f"in {first} and {second}"
    if one.which is not None and other.which is not None:
        files = {split.name: set(split.which.tolist()) for split in (one, other)}
        shared = sorted(files[first] & files[second])
        groups = [[file] for file in shared]
        groups += [g for g in duplicates.same if all(some.intersection(g) for some in files.values())]
        near = [
            pair[:2] for pair in duplicates.near if all(some.intersection(pair[:2]) for some in files.values())
        ]  # fmt: skip
        for what, found in ((f"images are {both}", groups), (f"pairs of nearly the same image are {both}", near)):
            section.find(what, (names(subject, group) for group in found), examples=across(subject, found))
    ids = [np.array(list(split.data.ids), object) for split in (one, other)]
    section.find(f"ids are {both}", sorted(set(ids[0]) & set(ids[1])))
    if isinstance(one.data, Labelled):
        labelled(section, args, subject, one.data, other.data)
    else:
        captions = sorted(set(one.captions) & set(other.captions))
        section.find(f"captions are {both}", captions)
        with logged(section):
            found = audit.article_overlap(one.data, other.data)
            if found.counts.get("also_in_training"):
                section.note(f"{found.counts['also_in_training']:,} articles are {both}")
    if section.verdict == "ok":
        section.say(f"no image, id or caption was found {both}" if len(one.captions) else f"no image is {both}")
    return section


def labelled(section: Section, args, subject: Subject, train: Labelled, test: Labelled) -> None:
    """What a probe's own audit says of patients and of several cases of an image."""
    with logged(section):
        shared = audit.shared_patients(subject.entry, train, test, args.allow_leakage)
        if shared:
            section.note(f"{shared:,} patients are in train and test (--allow-leakage)")
        elif shared is None:
            section.note("no patients are named: whether the splits share some is unknown")
        else:
            section.say("no patient is in train and test")
    if subject.entry["type"] == "cbis":
        across_tasks = audit.across_tasks(subject.entry)
        if across_tasks:
            section.say(f"patients that one CBIS task trains on and the other tests: {across_tasks['either']:,}")
    for name, data in (("train", train), ("test", test)):
        several = audit.several_cases(subject.entry, data)
        if several["images"]:
            section.say(
                f"{name}: {several['cases']:,} cases are of {several['images']:,} images with more than one case"
            )


def across(subject: Subject, groups):
    """Each group with one sample of either split."""
    for group in groups:
        samples = [sample for file in group for sample in subject.samples(file)]
        chosen = {name: (name, i) for name, i in reversed(samples)}
        yield Example(" = ".join(subject.show(file) for file in group), list(chosen.values()))
