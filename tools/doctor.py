"""Look at a run before it is started: the data, the disk, the weights, and what a step takes.

python tools/doctor.py main.py --root /data/roco --arch medclip_vit --pretrained medclip --output-dir runs/vit
python tools/doctor.py main_linear.py --dataset cbis_calc --root /data/CBIS-DDSM --html doctor.html

Takes the script's own arguments, and --html FILE and --download. Prints a page with a verdict on each part: ok, note,
or FAULT. Exit code 2 if the run would fail. Nothing but the page is written, and nothing downloaded without --download.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import options

SCRIPTS = {"main.py": options.train_parser, "main_linear.py": options.linear_parser}


def parse(words: list[str]):
    """The arguments of the script that the first word names (main.py without one), and those of the check."""
    script = words[0] if words and words[0] in SCRIPTS else "main.py"
    parser = SCRIPTS[script]()
    parser.prog = f"doctor.py {script}"
    parser.description = __doc__.splitlines()[0]
    add = parser.add_argument_group("check").add_argument
    add("--html", metavar="FILE", help="write a page with examples and their views, too")
    add("--download", action="store_true", help="download the weights and tokenizers that a run would")
    args = options.parse(parser, words[1:] if words[:1] == [script] else words)
    args.script, args.words = script, words[1:] if words[:1] == [script] else words
    return args


if __name__ == "__main__":  # before the heavy imports, so that --help and a wrong flag answer at once
    ARGS = parse(sys.argv[1:])

import shlex
import time

import distributed
import main_linear
import utils
from data import shard_index
from tools.checks import captions, disk, duplicates, network, page, pictures, splits, step, subject
from tools.checks.section import FAULT, Section
from training import run


def examine(args) -> tuple[list[Section], subject.Subject]:
    """All sections of a run's check, whatever is found in any of them; and the data that were read. Settles `args`."""
    found, sections = subject.Subject(), []
    shard_index.KEEP = False
    device = distributed.init_distributed(args.device, None, "env://")
    trains = args.script == "main.py"
    sections.append(subject.read(args, found))
    looks = pictures.look_at_all(found) if found.files else None
    if looks is not None:
        sections.append(pictures.describe(found, looks, args.skip_broken))
        doubles = duplicates.find(found, looks)
        sections.append(duplicates.describe(found, doubles))
    whole = {name: readable(found, split, looks) for name, split in found.splits.items()}
    if trains and found.splits:
        sections.append(captions.describe(found))
    if looks is not None:
        sections.append(splits.describe(args, found, doubles))
    look_at_network = look_at_training if trains else look_at_probe
    sections += look_at_network(args, found, whole, looks, device)
    return [section for section in sections if section is not None], found


def look_at_training(args, found, whole: dict, looks, device) -> list[Section]:
    out = run.folder_of(args)
    train = whole.get("train")
    section, tokenizer, model = network.build(args, out, train, device, args.download)
    sections = [section]
    if tokenizer is not None:
        sections.append(captions.describe_lengths(found, tokenizer, args.context_length))
    checkpoint = network.checkpoint_bytes(model) if model is not None else 0
    sections.append(disk.describe(args, found, out, looks, checkpoint))
    if train is not None:
        sections.append(step.describe(args, found, model, tokenizer, train))
    return sections


def look_at_probe(args, found, whole: dict, looks, device) -> list[Section]:
    section, model = network.build_probe(args, whole.get("train"), whole.get("test"), device, args.download)
    out = main_linear.folder_of(args)
    sections = [section, disk.describe(args, found, out, looks, 0)]
    if model is not None and whole.get("test") is not None:
        sections.append(step.describe_features(args, whole, model))
    return sections


def readable(found, split, looks):
    """A split without the images that cannot be read; None if none is left."""
    broken = {found.files[i] for i in looks.reasons} if looks is not None else set()
    data = split.data.without(broken) if broken else split.data
    return data if len(data) else None


def main(args) -> None:
    started = time.monotonic()
    sections, found = examine(args)
    command = shlex.join(["python", "tools/doctor.py", args.script, *args.words])
    print(page.as_text(command, sections))
    if args.html:
        utils.make_folder(Path(args.html).absolute().parent)
        utils.write_text(Path(args.html), page.as_html(command, sections, found, args))
        print(f"page: {args.html}")
    print(f"{time.monotonic() - started:.0f} s")
    if any(section.verdict == FAULT for section in sections):
        sys.exit(2)


if __name__ == "__main__":
    distributed.run_script(main, ARGS)
