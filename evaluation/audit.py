"""What makes a figure look better than it is: patients, images or articles that training and test splits share."""

import itertools
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from data import cbis, images
from utils import InputError, logger

HASH_ROWS = 20_000  # images above which their pairs are too many to compare
NEAR = 6  # the bits of 64, at most, in which the hashes of near-duplicates differ
NAMED = 20  # of the closest pairs, which results.json names


def probe_audit(entry: dict, train, test, allow_leakage: bool) -> dict:
    """What the splits `train` and `test` (datasets.Labelled) of a catalog entry share.

    Patients and images are compared by name, images also by a perceptual hash. Raises InputError if the splits share
    patients, unless `allow_leakage`.
    """
    found = {"patients_in_both": shared_patients(entry, train, test, allow_leakage)}
    if entry["type"] == "cbis":
        found["patients_across_tasks"] = across_tasks(entry)
    found["images_in_both"] = len(image_names(entry, train) & image_names(entry, test))
    found["several_cases_of_an_image"] = {
        name: several_cases(entry, data) for name, data in (("train", train), ("test", test))
    }
    found["near_duplicates"] = near_duplicates(train, test)
    return found


def shared_patients(entry: dict, train, test, allow_leakage: bool) -> int | None:
    """The number of patients in both splits; None where no patients are known."""
    if not train.patients or not test.patients:
        return None
    common = set(train.patients) & set(test.patients)
    both = sorted(common)
    if both and not allow_leakage:
        rows = sum(one in common for one in test.patients)
        raise InputError(
            f"--dataset {entry['name']}: {len(both)} patients are in the training and in the test split ({both[0]}"
            f"{', ...' if len(both) > 1 else ''}; {rows} of {len(test)} test cases): use a split by patient, or "
            "--allow-leakage if the figure is not to be reported"
        )
    return len(both)


def across_tasks(entry: dict) -> dict[str, int] | None:
    """How many of CBIS-DDSM's patients one task trains on and the other tests; None if a CSV cannot be read."""
    try:
        patients = {
            (task, split): cbis.patients(entry["path"], task, split)
            for task, split in itertools.product(("calcification", "mass"), ("train", "test"))
        }
    except (InputError, OSError):
        return None
    calc_mass = patients["calcification", "train"] & patients["mass", "test"]
    mass_calc = patients["mass", "train"] & patients["calcification", "test"]
    return {
        "calcification_train_mass_test": len(calc_mass),
        "mass_train_calcification_test": len(mass_calc),
        "either": len(calc_mass | mass_calc),
    }


def image_names(entry: dict, data) -> set[str]:
    """The images that the cases are of; for CBIS-DDSM the mammograms, of which several cases may be crops."""
    if entry["type"] == "cbis":
        return {mammogram(one) for one in data.ids}
    return set(data.images) if isinstance(data.images[0], str) else set()


def mammogram(case_id: str) -> str:
    """Calc-Training_P_00005_RIGHT_CC_1 -> P_00005_RIGHT_CC, the same in all four CSVs."""
    return re.sub(r"^(Calc|Mass)-(Training|Test)_|_\d+$", "", case_id)


def several_cases(entry: dict, data) -> dict[str, int]:
    """The number of images with more than one case (a mammogram with several abnormalities), and of those cases.

    Such cases are alike. The probe's folds and its intervals are by patient, and so keep them together.
    """
    if not isinstance(data.images[0], str):
        return {"images": 0, "cases": 0}
    names = [mammogram(one) for one in data.ids] if entry["type"] == "cbis" else data.images
    counts = [count for count in Counter(names).values() if count > 1]
    return {"images": len(counts), "cases": sum(counts)}


# Near-duplicates


def near_duplicates(train, test) -> dict | None:
    """Pairs of images whose perceptual hashes differ in at most 6 of 64 bits, between the splits and within each.

    All are counted, and the closest between the splits are named: two images with a small distance should be looked
    at, but need not be the same. None for sets that are too large or have no files.
    """
    if len(train) + len(test) > HASH_ROWS or not isinstance(train.images[0], str):
        return None
    hashes = {name: file_hashes(data.images) for name, data in (("train", train), ("test", test))}
    named, counts = [], {}
    for first, second in (("train", "test"), ("train", "train"), ("test", "test")):
        rows, columns, distances = close_pairs(hashes[first], hashes[second])
        if first == second:
            keep = rows < columns
            rows, columns, distances = rows[keep], columns[keep], distances[keep]
        left, right = ({"train": train, "test": test}[one] for one in (first, second))
        other = np.array([left.images[i] != right.images[j] for i, j in zip(rows, columns, strict=True)], bool)
        counts[f"{first}_{second}"] = int(other.sum())
        if first != second:
            for i in np.argsort(distances, kind="stable")[:NAMED]:
                pair = {"train": left.ids[rows[i]], "test": right.ids[columns[i]], "bits": int(distances[i])}
                named.append(pair)
    return {"bits": NEAR, **counts, "closest": named}


def file_hashes(paths) -> np.ndarray:
    """(N,) uint64; the files are decoded on all cores."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return np.fromiter(pool.map(file_hash, paths), np.uint64, len(paths))


def file_hash(path: str) -> int:
    return perceptual_hash(np.asarray(images.read_small(path, 64)))


def perceptual_hash(gray: np.ndarray) -> int:
    """The hash pHash (Zauner 2010) of an image (h, w) uint8: 64 bits.

    Each says whether one of the 8 x 8 lowest frequencies, in a cosine transform of 32 x 32 pixels, exceeds their
    median. The mean of the pixels is left out: it counts as 0.
    """
    small = cv2.resize(gray, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:8, :8].ravel()
    low[0] = 0
    return int(np.packbits(low > np.median(low[1:])).view(">u8")[0])


def close_pairs(first: np.ndarray, second: np.ndarray, block: int = 512):
    """Row numbers of the pairs of hashes within NEAR bits, and their distances."""
    found = []
    for start in range(0, len(first), block):
        distance = np.bitwise_count(first[start : start + block, None] ^ second)
        rows, columns = np.divmod(np.flatnonzero(distance <= NEAR), len(second))  # faster than nonzero of two axes
        found.append((rows + start, columns, distance[rows, columns]))
    return tuple(np.concatenate(column) for column in zip(*found, strict=True))


def show(found: dict) -> None:
    """One line in the log for each finding."""

    def text(value):
        if isinstance(value, dict):
            return ", ".join(f"{name} {text(one)}" for name, one in value.items() if name != "closest")
        return "unknown" if value is None else str(value)

    logger.info("audit: " + "; ".join(f"{name.replace('_', ' ')}: {text(one)}" for name, one in found.items()))
    pairs = (found.get("near_duplicates") or {}).get("closest", [])
    for pair in pairs[:3]:
        logger.info(f"audit: alike in {64 - pair['bits']} of 64 bits: {pair['train']} (train), {pair['test']} (test)")


# Articles


@dataclass
class Overlap:
    """Which articles the validation split shares with training.

    `articles` are those of its pairs; `disjoint` (N,) bool says which pairs' articles have no training image, None if
    no article is known.
    """

    articles: list[str | None]
    disjoint: np.ndarray | None
    counts: dict

    def notes(self) -> dict:
        """For config.json."""
        return {"articles": self.counts} if self.counts else {}


def article_overlap(train, validation) -> Overlap:
    """The overlap of two splits of pairs (sets.Pairs), logged; `validation` may be None."""
    if validation is None:
        return Overlap([], None, {})
    articles = named_articles(validation)
    disjoint, counts = shared_articles(articles, set(named_articles(train)))
    log_articles(counts)
    return Overlap(articles, disjoint if any(articles) else None, counts)


def named_articles(pairs) -> list[str | None]:
    return [pairs.articles.get(i) for i in range(len(pairs))] if pairs.articles else [None] * len(pairs)


def shared_articles(
    validation_articles: list[str | None], training_articles: set[str | None]
) -> tuple[np.ndarray, dict]:
    """-> (N,) bool, which validation pairs are of articles without a training image; and the counts.

    A pair whose article is unknown is taken to share it.
    """
    known = {one for one in validation_articles if one}
    shared = known & training_articles
    disjoint = np.array([one is not None and one not in training_articles for one in validation_articles], bool)
    counts = {
        "validation_articles": len(known),
        "also_in_training": len(shared),
        "validation_pairs": len(validation_articles),
        "article_disjoint_pairs": int(disjoint.sum()),
        "article_unknown": sum(one is None for one in validation_articles),
    }
    return disjoint, counts


def log_articles(counts: dict) -> None:
    if counts["validation_articles"] == 0:
        logger.info("audit: the data do not name the pairs' articles: whether splits share some is unknown")
        return
    share = 100 * counts["also_in_training"] / max(1, counts["validation_articles"])
    logger.info(
        f"audit: {counts['also_in_training']:,} of {counts['validation_articles']:,} validation articles "
        f"({share:.1f}%) have training images too; {counts['article_disjoint_pairs']:,} of "
        f"{counts['validation_pairs']:,} pairs are of other articles"
    )
