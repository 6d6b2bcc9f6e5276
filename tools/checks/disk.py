"""Whether the output folder and the cache can be written, and what they take of the disks."""

import os
import shutil
from pathlib import Path

from data import cache, lock
from tools.checks.section import Section, logged
from tools.checks.subject import Subject

SLOTS = 4  # files of a checkpoint's size at most: the latest, the one before, the best, and the one being written


def existing(folder: Path) -> Path:
    """`folder`, or the nearest one above it that is there."""
    return next(one for one in (folder, *folder.parents) if one.exists())


def describe(args, subject: Subject, out: Path, looks, checkpoint: int) -> Section:
    """`checkpoint` is the bytes of one, 0 for a probe; `looks` is pictures.Looks or None."""
    section = Section("Disk")
    there = existing(out)
    if not there.is_dir():
        section.fault(f"--output-dir {out}: {there} is a file")
    elif not os.access(there, os.W_OK):
        section.fault(f"--output-dir {out}: {there} cannot be written to")
    elif lock.in_use(out):
        section.fault(f"--output-dir {out}: another run is writing to it")
    else:
        section.say(f"--output-dir {out}: can be written; {'it is there' if there == out else 'it would be made'}")
    free = shutil.disk_usage(there).free
    needed = {there.stat().st_dev: SLOTS * checkpoint}
    if checkpoint:
        text = f"a checkpoint takes {gigabytes(checkpoint)}, and {SLOTS} of them at most; {gigabytes(free)} are free"
        few = section.note if free < SLOTS * checkpoint else section.say
        (section.fault if free < 2 * checkpoint else few)(text)
    if args.cache != "none" and looks is not None and len(looks.files):
        plan_cache(section, args, subject, looks, needed)
    return section


def plan_cache(section: Section, args, subject: Subject, looks, needed: dict) -> None:
    """Where a run would keep the decoded pictures of each split; nothing is written."""
    broken = {subject.files[i] for i in looks.reasons}
    for name, split in subject.splits.items():
        if split.which is None:
            section.note(f"--cache has no effect on type '{subject.entry['type']}'")
            continue
        data = split.data.without(broken) if broken else split.data
        path = data.path if split.captions else data.images.__getitem__
        root = data.root if split.captions else subject.entry["path"]
        with logged(section):
            plan = cache.plan(args.cache, root, f"{args.dataset}-{name}", path, len(data), args.image_size)
            subject.cached[name] = plan.folder is not None
            if plan.folder is None:
                section.say(f"{name}: no cache: {plan.why}")
                continue
            if plan.whole:
                section.say(f"{name}: the cache {plan.folder} is whole")
                continue
            there = existing(plan.folder)
            taken = needed.get(there.stat().st_dev, 0)
            needed[there.stat().st_dev] = taken + plan.needed
            free = cache.free_bytes(plan.folder)
            text = f"{name}: a cache of about {gigabytes(plan.needed)} would be built in {plan.folder}"
            fits = plan.needed + taken <= free
            (section.say if fits else section.fault)(f"{text}; {gigabytes(free)} are free there" + (
                f", and {gigabytes(taken)} are also needed there" if taken else ""))  # fmt: skip


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count < 1e10 else f"{count / 1e9:,.0f} GB"
