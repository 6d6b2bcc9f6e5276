"""Files of weights, opened so that none can run code: torch.save's, with weights_only, and safetensors."""

import argparse
import io
import json
import os
import re
import warnings
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from utils import InputError, one_line, read_text

WEIGHTS, SAFE = "pytorch_model.bin", "model.safetensors"
IN_A_FOLDER = (SAFE, f"{SAFE}.index.json", WEIGHTS)  # the first that is there is taken
MAX_SWELLING = 100  # how much larger than its compressed form a zip's member may be: weights hardly compress
# Classes of the settings that stand beside weights, of omegaconf and Lightning, and what those are made of.
SETTINGS = re.compile(
    r"(omegaconf|pytorch_lightning)\.[\w.]+|typing\.Any|collections\.defaultdict"
    r"|builtins\.(dict|list|tuple|int|float|str|bool)"
)


def read(path: str | Path) -> dict:
    """The contents of a checkpoint: a file that torch.save wrote, a zip with `pytorch_model.bin`, a `.safetensors` file
    or the index of several, or a folder with one of IN_A_FOLDER.

    Raises InputError if there is no such file, or if it is damaged, holds no dict, or could run code.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        found = [path / name for name in IN_A_FOLDER if (path / name).is_file()]
        if not found:
            raise InputError(f"{path}: no checkpoint in this folder: it holds none of {', '.join(IN_A_FOLDER)}")
        path = found[0]
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.name.endswith(".safetensors.index.json"):
        return read_shards(path)
    source = path
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                check_archive(archive)
                # A file of torch.save is a zip archive too. MedCLIP's is an archive with such a file in it.
                members = [name for name in archive.namelist() if name.rsplit("/", 1)[-1] == WEIGHTS]
                if members:
                    source = io.BytesIO(archive.read(members[0]))  # in memory: no path in the archive is written to
        # SLIP's checkpoints hold an argparse.Namespace, which is plain data. No other class is allowed.
        allowed = [argparse.Namespace, *(set_aside(path) if source is path else ())]
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns of pickle protocols other than its own
            contents = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch raise errors of many kinds
        unsafe = "Unsupported global" in str(error) or "weights_only" in str(error)
        what = "holds more than weights, which could run code" if unsafe else "is damaged or not a checkpoint"
        raise InputError(f"{path}: {what}; it was not loaded. Give a state dict saved by torch.save") from None
    if not isinstance(contents, dict):
        raise InputError(f"{path}: holds a {type(contents).__name__}, not a dict of weights")
    return contents


def refusal(error: BaseException) -> str:
    """Why another library could not load a file of weights, on one line; torch's own words advise to run its code."""
    return "holds more than weights, which could run code" if "weights_only" in str(error) else one_line(error)


class SetAside:
    """What the settings in a checkpoint of Mammo-CLIP's or GLoRIA's become: nothing of theirs is run or kept."""

    def __init__(self, *_):
        pass

    def __setstate__(self, _):
        pass

    def __setitem__(self, *_):
        pass


def set_aside(path: Path) -> list[tuple[type, str]]:
    """The names in a file of torch.save that SETTINGS has, each with the class that stands for it."""
    if not zipfile.is_zipfile(path):  # torch's old format
        return []
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return [(SetAside, name) for name in names if SETTINGS.fullmatch(name)]


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Raises InputError for a file that is damaged, cut short or none: its header is held against its size."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(f"{path}: is damaged or no safetensors file ({why}); it was not loaded") from None


def read_shards(index: Path) -> dict[str, torch.Tensor]:
    """The tensors that an index names ("weight_map": tensor -> the file beside it that holds it). Raises InputError."""
    try:
        shards = json.loads(read_text(index))["weight_map"]
        plain = all(isinstance(name, str) and name == Path(name).name for name in shards.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        plain = False
    if not plain:  # a path that leads out of the folder is not followed
        raise InputError(f'{index}: no index of safetensors files: its "weight_map" must name files beside it')
    contents = {}
    for name in sorted(set(shards.values())):
        if not os.path.isfile(index.parent / name):
            raise InputError(f"{index}: names {name[:120]}, which is not there")
        contents |= read_safetensors(index.parent / name)
    absent = shards.keys() - contents.keys()
    if absent:
        raise InputError(f"{index}: the files that it names lack {first_keys(absent)}")
    return contents


def check_archive(archive: zipfile.ZipFile) -> None:
    """Verify the CRC-32 of every member, as torch.load does not, and refuse one that would unpack to far more than its
    size. Raises BadZipFile."""
    for member in archive.infolist():
        if member.file_size > max(MAX_SWELLING * member.compress_size, 1 << 26):
            raise zipfile.BadZipFile(f"{member.filename} would swell to {member.file_size:,} bytes")
    damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} is altered")


def first_keys(keys) -> str:
    keys = sorted(keys)
    return ", ".join(repr(key)[1:-1][:120] for key in keys[:6]) + (
        f" and {len(keys) - 6} more" if len(keys) > 6 else ""
    )
