"""Features of a frozen encoder, extracted once; an extraction that was interrupted goes on from what it had saved."""

import itertools
import time
import zlib
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path

import torch

import checkpoints
import distributed
import models
import utils
from data import augment, locations, views
from data.batches import open_loader, rank_batches
from training.progress import Progress
from utils import InputError, Interrupted, logger

FLIPS = ((), (-1,), (-2,), (-2, -1))  # the axes that are reversed: none, left to right, upside down, both


@torch.no_grad()
def extract(model, data, pictures, args, device, dtype, folder: Path, stop, flips=False) -> torch.Tensor:
    """The features (N, D) float32 of the N `pictures` of `data` (datasets.Labelled), on the CPU.

    With `flips` they are (N, 4, D): each image's in all of `FLIPS`. Each rank encodes its share, and every rank
    returns the features of all.

    Finished features are saved in `folder` at intervals (--save-every), and when `stop` (signals.StopRequest) asks to
    leave; the next extraction by the same encoder of the same images begins with them. Raises Interrupted when asked
    to leave, and InputError if features are not finite.
    """
    width = model.embed_dim if args.features == "projected" else model.width
    shape = (len(FLIPS), width) if flips else (width,)
    kept = Shards(own_folder(folder), identity(model, data, args, dtype, flips), shape)
    rows = [kept.rows] if kept.written else []
    rows += encode_share(model, data, pictures, args, device, dtype, kept, stop, flips)
    mine = torch.cat([one.to(device) for one in rows]) if rows else torch.zeros(0, *shape, device=device)
    features = distributed.gather_rows(mine, len(data)).cpu()
    if not features.isfinite().all():
        raise InputError(not_finite(args))
    return features


def not_finite(args) -> str:
    return f"{args.pretrained}: the encoder gives features that are not finite; try --amp off"


def own_folder(folder: Path, rank: int | None = None) -> Path:
    """Where this rank, or another one, saves its share of the features."""
    return folder / f"{distributed.rank() if rank is None else rank}_of_{distributed.world_size()}"


@torch.no_grad()
def encode_share(model, data, pictures, args, device, dtype, kept: "Shards", stop, flips=False):
    """Yield the features of this rank's share, a batch at a time on the device, from the first that `kept` lacks; and
    add them to `kept`, as `extract` says. Every rank must go through all of it."""
    batches = rank_batches(len(data), args.batch_size, distributed.rank(), distributed.world_size())
    done = -(-kept.written // args.batch_size)
    if done:
        logger.info(f"going on with {done} of {len(batches)} batches of features in {kept.folder.parent}")
    most = max(distributed.all_objects(len(batches) - done))  # every rank must ask `stop` the same number of times
    dataset = views.WholeImages(pictures, None, args.image_size, data.fit)
    norm = models.pixel_statistics(args)
    progress = Progress(len(batches), args.print_freq, "features", done)
    new, saved_at = [], time.monotonic()
    every_steps, every_seconds = args.save_every
    with open_loader(dataset, batches[done:], args.workers, device) as loader:
        for batch in itertools.islice(itertools.chain(loader, itertools.repeat(None)), most):
            if stop.check():
                kept.add(new)
                distributed.all_objects(None)  # wait for all: a launcher ends the others when one rank has left
                raise Interrupted(stop.signals)
            if batch is None:
                continue
            new.append(encode(model, batch, norm, device, dtype, args.features == "projected", flips))
            yield new[-1]
            progress.step(len(new[-1]), dict)
            if len(new) == every_steps or (every_seconds and time.monotonic() - saved_at >= every_seconds):
                new, saved_at = kept.add(new), time.monotonic()
    kept.add(new)
    progress.close()


def encode(model, batch, norm, device, dtype, projected: bool, flips: bool) -> torch.Tensor:
    """A batch of views.WholeImages -> its features on the device, float32: (n, D), or with `flips` (n, 4, D)."""
    (pixels,) = augment.make_views(batch, *norm, device)
    with utils.autocast(device, dtype):
        encoded = [model.encode_image(pixels.flip(axes), projected).float() for axes in FLIPS[: 4 if flips else 1]]
    return torch.stack(encoded, dim=1) if flips else encoded[0]


def weights_crc(model, parts: tuple[str, ...] = ("",)) -> str:
    """The crc32 of a model's weights, eight hexadecimal digits; or of some `parts`, such as "image_encoder"."""
    return tensors_crc(tensor for name, tensor in model.state_dict().items() if name.startswith(parts))


def tensors_crc(tensors: Iterable[torch.Tensor]) -> str:
    """The crc32 of the bytes of tensors in their order, eight hexadecimal digits."""
    found = 0
    for tensor in tensors:
        found = zlib.crc32(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy(), found)
    return f"{found:08x}"


def identity(model, data, args, dtype, flips: bool) -> str:
    """All that the features depend on: the weights, the images' names, and how they are shown to the encoder."""
    names = zlib.crc32("\n".join(data.ids).encode())
    window = locations.split(data.images[0]).window if isinstance(data.images[0], str) else None
    settings = (
        args.arch,
        args.features,
        args.normalize,
        args.image_size,
        args.batch_size,
        str(dtype),
        data.fit,
        args.cache == "none",
        flips,
        window,
    )
    return f"{weights_crc(model)} {names:08x} {settings}"


class Shards:
    """Numbered files of features, each row of `shape`; `written` rows of those in `folder` belong to `key`."""

    def __init__(self, folder: Path, key: str, shape: tuple[int, ...] = ()):
        self.folder, self.key, self.shape, self.starts = folder, key, shape, [0]  # of each file, and of the next
        self.recent = -1, None  # the file that was read last, and its rows
        while (path := self.path()).exists():
            try:
                contents = checkpoints.read(path)
            except InputError as error:
                logger.warning(str(error))
                break
            if not self.follows(contents):
                break  # left by another encoder, or by an earlier extraction whose first files were replaced
            self.starts.append(self.written + len(contents["rows"]))

    @property
    def written(self) -> int:
        return self.starts[-1]

    @property
    def rows(self) -> torch.Tensor:
        return self.between(0, self.written)

    def between(self, start: int, stop: int) -> torch.Tensor:
        """The rows from `start` to before `stop`; one file is in memory at a time. Raises InputError."""
        found = [torch.zeros(0, *self.shape)]
        while start < stop:
            number = bisect_right(self.starts, start) - 1
            if self.recent[0] != number:
                self.recent = number, checkpoints.read(self.path(number))["rows"]
            found.append(self.recent[1][start - self.starts[number] : stop - self.starts[number]])
            start += len(found[-1])
        return torch.cat(found)

    def follows(self, contents: dict) -> bool:
        """Whether a file's contents are the rows that come next after those found so far."""
        key, start, rows = (contents.get(name) for name in ("key", "start", "rows"))
        if not (isinstance(key, str) and isinstance(start, int) and isinstance(rows, torch.Tensor)):
            return False
        plain = rows.dtype == torch.float32 and rows.layout == torch.strided
        fits = rows.ndim > 0 and len(rows) > 0 and rows.shape[1:] == self.shape
        return key == self.key and start == self.written and plain and fits

    def path(self, number: int | None = None) -> Path:
        """File `number`, by default the next one."""
        return self.folder / f"{len(self.starts) - 1 if number is None else number:05d}.pt"

    def add(self, rows: list[torch.Tensor]) -> list[torch.Tensor]:
        """Write more rows -> those that could not be written, for the next try; [] if all were."""
        if not rows:
            return []
        new = torch.cat(rows).cpu()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            utils.save_tensors({"key": self.key, "start": self.written, "rows": new}, self.path())
        except (OSError, InputError) as error:
            logger.warning(f"{error}; the extraction goes on")
            return rows
        self.starts.append(self.written + len(new))
        return []


def in_order(parts: list[Shards], start: int, stop: int) -> torch.Tensor:
    """Rows of all ranks in the order of the set, from `start` to before `stop`; `parts` are what each rank saved."""
    rows = torch.empty(stop - start, *parts[0].shape)
    for rank, part in enumerate(parts):
        low, high = (-(-(edge - rank) // len(parts)) for edge in (start, stop))
        rows[(rank - start) % len(parts) :: len(parts)] = part.between(low, high)
    return rows
