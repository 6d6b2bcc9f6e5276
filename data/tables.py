"""Tables of one's own, CSV, TSV, JSON lines or parquet: image-caption pairs, or labelled images.

A catalog entry names the columns, or the table has names that are known (table_rows.ROLES). docs/data.md has an entry
for each layout that is common.
"""

import os
from array import array
from collections.abc import Callable, Mapping

import numpy as np

from data import findings
from data.buffers import Choices, Strings
from data.roco import absent, in_subset
from data.sets import Labelled, Pairs, named_fit
from data.table_files import first_row, line, lines
from data.table_rows import Rows, some
from utils import InputError, logger

HELD_OUT = 0.1  # of the patients, for the validation of a training
HELD_OUT_LABELLED = 0.2  # for the test of a probe


def table_pairs(entry: dict, split: str, metadata=None, subset: str = "all", optional: bool = False) -> Pairs | None:
    """The "train" or "validation" split of an entry of type "table". Raises InputError.

    See datasets.paired_set for the arguments; `metadata` is refused.
    """
    return read_pairs(entry, split, metadata, subset, optional)


def read_pairs(
    entry: dict,
    split: str,
    metadata=None,
    subset: str = "all",
    optional: bool = False,
    keywords: Mapping[str, str] | None = None,
    articles: Mapping[str, str] | None = None,
) -> Pairs | None:
    """As `table_pairs`; `keywords` and `articles` give those of an id that are not in the table."""
    if metadata:
        raise InputError(f"--metadata: is ROCO's; name the table of '{entry['name']}' as 'train' in the catalog")
    chosen = in_subset(subset) if subset != "all" else None
    rows = Rows(entry, split, ("validation",), HELD_OUT)
    if rows.empty():
        return None
    extra = [rows.columns["keywords"]] if chosen and "keywords" in rows.columns else []
    ids, captions, files, named = Strings(), Strings(), Strings(), Strings()
    numbers, written, member, without_caption = array("q"), array("q"), array("b"), 0
    for block in rows.select(rows.need("caption"), *extra):
        found = rows.convert(lines, block.cells[0], block.numbers, rows.columns["caption"])
        without_caption += found.count([])
        pairs = [
            (i, caption, image or "")
            for i, (its_captions, its_images) in enumerate(zip(found, block.images, strict=True))
            for caption in its_captions for image in its_images
        ]  # fmt: skip
        which = [i for i, _, _ in pairs]
        ids.add([block.ids[i] for i in which])
        captions.add([caption for _, caption, _ in pairs])
        files.add([image for _, _, image in pairs])
        if articles is None:
            named.add([block.articles[i] for i in which])
        else:
            named.add([articles.get(block.ids[i], "") for i in which])
        numbers.extend(block.numbers[i] for i in which)
        written.extend(hash(tuple(block.written[i])) for i in which)
        if chosen:
            words = [(keywords or {}).get(key, "") for key in block.ids]
            for cells in block.cells[1:]:
                words = [" ".join(one) for one in rows.convert(lines, cells, block.numbers, extra[0])]
            member.extend(chosen(f"{caption} {words[i]}") for i, caption, _ in pairs)
    source = rows.files[0] + (f" and {len(rows.files) - 1} more" if len(rows.files) > 1 else "")
    if without_caption:
        logger.info(f"{source}: {without_caption} rows without a caption left out")
    if not len(ids):
        return absent(f"{source}: holds no captions of the {split} split", optional)
    counts = {"captions": len(ids)}
    ids = unique(ids, numbers, written, rows.where if "id" in rows.columns else None)
    keep = np.array(member, bool) if chosen else np.ones(len(ids), bool)
    if chosen:
        counts[subset] = int(keep.sum())
        if not keep.any():
            return absent(f"{source}: no caption belongs to --subset {subset}", optional)
    there = files.lengths() > 0
    missing = list(ids.take(keep & ~there))
    keep &= there
    if not keep.any():
        return absent(
            f"{source}: no image for any of its {len(missing)} captions (the first is '{missing[0][:80]}'): give the "
            f"folder of the images as 'images' in the entry '{entry['name']}'",
            optional,
        )
    ids, captions, files, named = (column.take(keep, reuse=True) for column in (ids, captions, files, named))
    counts |= {"pairs": len(ids), "without image": len(missing)}
    of = Choices.of(article or None for article in named)
    notes = {"columns": describe(rows, "image", "caption", "id", "patient", "article"), **rows.notes()}
    return Pairs(
        rows.root, ids, shared(files), captions, missing, counts, articles=of if len(of.strings) else None, notes=notes
    )


def describe(rows: Rows, *roles: str) -> str:
    """Which columns were taken for what."""
    named = {role: rows.columns[role] for role in roles if role in rows.columns}
    if rows.template:
        named["image"] = rows.entry["images"]
    return ", ".join(f"{role} from '{column}'" for role, column in named.items())


def unique(ids: Strings, numbers, written, where: Callable | None) -> Strings:
    """The ids of N pairs, those that repeat followed by _2, _3 and so on.

    Several captions may be of one image, and several images of one caption. With `where`, which names a row, InputError
    is raised if an id comes again with another image: `numbers` are the pairs' rows, and `written` the hashes of their
    rows' images.
    """
    hashes = np.fromiter(map(hash, ids), np.int64, len(ids))
    ordered = np.sort(hashes)
    repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not repeated:
        return ids
    taken, seen = set(hashes.tolist()), {}

    def names():
        for i, key in enumerate(ids):
            name = key
            if hash(key) in repeated:
                count, image = seen.get(key, (0, written[i]))
                if where and written[i] != image:
                    raise InputError(
                        f"{where(numbers[i])}: the id '{key[:60]}' is that of an earlier row with another image: "
                        "correct it, or name another column as 'id' in the catalog"
                    )
                while count and hash(name := f"{key}_{count + 1}") in taken:
                    count += 1
                taken.add(hash(name))
                seen[key] = count + 1, image
            yield name

    return Strings(names())


def shared(files: Strings) -> Choices:
    """N locations as Choices, each kept once, in the order in which they first come."""
    hashes = np.fromiter(map(hash, files), np.int64, len(files))
    _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    keep = np.zeros(len(files), bool)
    keep[first] = True
    number = np.cumsum(keep, dtype=np.int32) - 1
    return Choices(files if keep.all() else files.take(keep, reuse=True), number[first[which]])


# Labelled


def table_labelled(entry: dict, split: str) -> Labelled:
    """The "train" or "test" split of an entry of type "table" with a `label`, or with `labels` of several findings.

    Raises InputError.
    """
    fit = named_fit(entry)
    rows = labelled_rows(entry, split)
    several = [name.strip() for name in entry.get("labels", "").split(",") if name.strip()]
    columns = several or [rows.need("label")]
    for key in ("label",) if several else ("uncertain", "blank"):
        if key in entry:
            logger.warning(
                f"entry '{entry['name']}': '{key}' has no effect {'beside' if several else 'without'} 'labels'"
            )
    ids, images, patients, labels, values = [], [], [], [], set()
    numbers, written, missing, blank = array("q"), array("q"), [], 0
    for block in rows.select(*columns):
        if several:
            cells = [*zip(*block.cells, strict=True)]
        else:
            cells = rows.convert(line, block.cells[0], block.numbers, columns[0])
            values.update(cells)
        for i, label in enumerate(cells):
            if label == "":
                blank += 1
                continue
            there = [image for image in block.images[i] if image is not None]
            missing += [block.ids[i]] * (len(block.images[i]) - len(there))
            for image in there:
                ids.append(block.ids[i])
                images.append(os.path.join(rows.root, image))
                patients.append(block.patients[i])
                labels.append(label)
                numbers.append(block.numbers[i])
                written.append(hash(tuple(block.written[i])))
    if missing:
        count = f"{len(missing)} of {len(missing) + len(ids)} rows of {rows.files[0]} have no image"
        if not images:
            raise InputError(f"{count}: {missing[0][:80]}, ...: give their folder as 'images' of '{entry['name']}'")
        logger.warning(f"{count} and are left out: {some(missing[:3])}{'; ...' if len(missing) > 3 else ''}")
    if blank:
        logger.info(f"{rows.files[0]}: {blank} rows without a label left out")
    ids = list(unique(Strings(ids), numbers, written, rows.where if "id" in rows.columns else None))
    notes = {"columns": describe(rows, "image", "label" if not several else "", "id", "patient"), **rows.notes()}
    if several:
        classes, (labels, notes["labels"]) = several, read_findings(entry, split, rows, several, labels, numbers)
    else:
        classes = sorted_classes(values) if split == "train" else training_classes(entry)
        labels = class_numbers(rows, classes, labels, numbers)
    patients = [one or f"(of {key})" for one, key in zip(patients, ids, strict=True)] if any(patients) else None
    return Labelled(ids, labels, classes, patients, images, fit, notes)


def labelled_rows(entry: dict, split: str, images: bool = True) -> Rows:
    return Rows(entry, split, ("test", "validation"), HELD_OUT_LABELLED, images)


def training_classes(entry: dict) -> list[str]:
    """The classes of the training split. Raises InputError."""
    rows, values = labelled_rows(entry, "train", images=False), set()
    column = rows.need("label")
    for block in rows.select(column):
        values.update(rows.convert(line, block.cells[0], block.numbers, column))
    return sorted_classes(values)


def sorted_classes(values) -> list[str]:
    """The values that are not empty, each once: numbers by size, before words."""
    return sorted(set(values) - {""}, key=lambda one: (0, int(one), "") if is_number(one) else (1, 0, one))


def is_number(value: str) -> bool:
    return value.isascii() and value.lstrip("-").isdigit() and len(value) < 19


def class_numbers(rows: Rows, classes: list[str], labels: list[str], numbers) -> np.ndarray:
    """(N,) the number of each label's class. Raises InputError with the first row whose label is no class."""
    known = {name: number for number, name in enumerate(classes)}
    for number, label in zip(numbers, labels, strict=True):
        if label not in known:
            raise InputError(
                f"{rows.where(number)}: '{label[:60]}' is no class of the training split ({some(classes)}): correct it"
            )
    return np.array([known[label] for label in labels], np.int64)


def read_findings(entry: dict, split: str, rows: Rows, columns: list[str], cells: list[tuple], numbers):
    """-> (N, K) float32 of 0, 1 and nan, and the policies in words. Raises InputError.

    The policy for what is uncertain is for training. Labels that are scored are not guessed: in the test split it is
    unknown.
    """
    uncertain, blank = entry.get("uncertain", "ignore"), entry.get("blank", "zeros")
    policy = uncertain if split == "train" else "ignore"
    labels = np.empty((len(cells), len(columns)), np.float32)
    edges = [*np.searchsorted(np.array(numbers), rows.starts).tolist(), len(cells)]
    for path, start, low, high in zip(rows.files, rows.starts, edges, edges[1:], strict=False):
        shown = [number - start + first_row(path) for number in numbers[low:high]]
        for k, column in enumerate(columns):
            of_column = [row[k] for row in cells[low:high]]
            labels[low:high, k] = findings.to_labels(of_column, f"{path}, column {column}", policy, blank, shown)
    return labels, f"-1 is taken as {uncertain} in training, as unknown in the test split; a blank cell as {blank}"
