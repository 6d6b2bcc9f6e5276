"""The model card that goes with an export: README.md, with the front matter that the Hugging Face hub reads.

All figures are of the run's own files, and of the probes that are given. (Mitchell et al., FAT* 2019: model cards.)
"""

from pathlib import Path

import torch

import utils
from evaluation import metrics
from evaluation.exports import EXPORT
from evaluation.results import percent
from options import BIO_CLINICAL_BERT, OBJECTIVES
from tools.phantoms import are_phantoms
from tools.report_page.runs import read_probe, read_training
from tools.samples import Samples
from utils import InputError

LIBRARIES = {"huggingface": "transformers", "timm": "timm", "open_clip": "open_clip", "onnx": "onnx"}
RECIPE = (  # the arguments of main.py that the card names
    "arch objective pretrained text_model text_pooling lock_image lock_text image_size normalize window context_length "
    "dataset subset epochs warmup_epochs batch_size update_freq lr lr_start lr_end wd betas eps clip_grad freeze_bn "
    "ssl_mlp_dim ssl_emb_dim ssl_scale ssl_temp amp seed"
).split()
PATHS = ("pretrained", "text_model")  # those that may be one: its last part is named
SHOWN = ("auroc", "average_precision", "f1", "precision", "recall", "ece", "brier")  # of a probe, where it has them
USE = {
    "huggingface": """```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained("FOLDER", trust_remote_code=True)
with torch.inference_mode():
    image = model.get_image_features(**processor(Image.open("image.png"))).pooler_output  # (1, {dim})
{text}```

`trust_remote_code` runs `modeling_medslip.py`, which lies here and can be read first. Embeddings are not L2-normalised;
`model(**inputs)` gives normalised ones and logits, as CLIPModel does.
""",
    "medclip": """```python
from medclip import MedCLIPModel, {vision}

model = MedCLIPModel(vision_cls={vision})
model.from_pretrained("FOLDER")
```
""",
}
TEXT = """    tokenizer = AutoTokenizer.from_pretrained("FOLDER", trust_remote_code=True)
    tokens = tokenizer(["a caption"], padding={padding}, truncation=True, return_tensors="pt")
    text = model.get_text_features(**tokens).pooler_output  # (1, {dim})
"""


def write_card(folder: Path, name: str, encoder, differences: dict, shown: Samples, probes: list[str]) -> None:
    """Write README.md. `name` is the format's, `probes` what `probe` says of each."""
    run = read_run(encoder)
    args = run["args"]
    parts = [
        front_matter(name, encoder),
        f"# MedSLIP: {cell(args['arch'])}, trained on {cell(args.get('dataset', 'unknown data'))}\n",
        f"An image encoder{' and a text encoder' if encoder.load_tokenizer else ''}, fine-tuned with MedSLIP's code on "
        f"{'image-caption pairs' if OBJECTIVES[args['objective']].text else 'images without their captions'} "
        f"(objective `{args['objective']}`) and written as `{name}` by `tools/export.py`.\n",
        use(name, encoder),
        NOT_FOR,
        "## Data\n",
        data(run, args),
        "## Recipe\n",
        recipe(run, args, encoder),
        "## Figures\n",
        validation(run),
        *probes,
        PUBLISHED,
        "## This export\n",
        f"`{name}`, read back and compared with the model on {len(shown.images)} images and {len(shown.captions)} "
        f"captions, {'real' if shown.real else 'drawn by a program'} ({cell(shown.source)}): the largest difference is "
        + ", ".join(f"{value:.2g} ({what})" for what, value in differences.items())
        + f". `{EXPORT}` says how images and texts are shown to it.\n",
        "## Licences\n",
        licences(args),
    ]
    utils.write_text(folder / "README.md", "\n".join(part for part in parts if part))


NOT_FOR = """## What it must not be used for

It is for research. It is no medical device, was not evaluated for any clinical use, and must not be used to diagnose,
to triage, or to decide about the care of a patient. Nothing here says how it does on images of other hospitals,
devices, views or patients than those below. Do not use it to identify persons.
"""
PUBLISHED = """The published tables of MedSLIP and of MedCLIP are of other weights. They were not reproduced with this
model, and none of their figures holds for it.
"""


def front_matter(name: str, encoder) -> str:
    """YAML; "other" is the hub's word for a licence that it has no word for."""
    library = [f"library_name: {LIBRARIES[name]}"] if name in LIBRARIES else []
    tags = ["medical", "radiology", "medslip", *(["clip"] if encoder.load_tokenizer else [])]
    lines = [
        "license: other",
        *library,
        "pipeline_tag: image-feature-extraction",
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    return "\n".join(["---", *lines, "---", ""])


def read_run(encoder) -> dict:
    """What tools/report_page reads of a run's folder, with `state`: the checkpoint's `epoch` and `step`. Of weights
    that lie elsewhere the arguments alone."""
    folder = encoder.path.parent
    if (folder / "config.json").is_file():
        run = read_training(folder)
        if isinstance(run.get("args"), dict):  # else it is another program's
            contents = torch.load(encoder.path, map_location="meta", mmap=True, weights_only=True)
            return {**run, "state": {name: contents.get(name) for name in ("epoch", "step")}}
    return {"args": {**vars(encoder.args), "pretrained": None}, "log": [], "retrieval": None, "state": {}}


def use(name: str, encoder) -> str:
    if name not in USE:
        return ""
    words = {"dim": encoder.model.embed_dim, "text": ""}
    if encoder.load_tokenizer:
        padding = '"max_length"' if encoder.pad_to else "True"
        words["text"] = TEXT.format(padding=padding, **words)
    words["vision"] = "MedCLIPVisionModelViT" if encoder.args.arch == "medclip_vit" else "MedCLIPVisionModel"
    text = USE[name]
    for word, value in words.items():
        text = text.replace("{" + word + "}", str(value))
    return "## Use\n\n" + text


def data(run: dict, args: dict) -> str:
    """What it was trained on, with the counts of config.json."""
    counts = run.get("data") or {}
    rows = [("data set", args.get("dataset")), ("subset", args.get("subset"))]
    for split in ("train", "validation"):
        found = counts.get(split)
        rows.append((split, ", ".join(f"{value} {key}" for key, value in found.items()) if found else "not known"))
    shared = (counts.get("articles") or {}).get("also_in_training")
    if shared is not None:
        rows.append(("validation articles that are also in training", shared))
    note = PHANTOMS if are_phantoms(args.get("root")) else ""
    return table(("", ""), rows) + note


PHANTOMS = """
**The data are phantoms: pictures drawn by a program, and captions made up for them. Figures on them say that the code
works, and nothing about patients.**
"""


def recipe(run: dict, args: dict, encoder) -> str:
    """The arguments that count, as main.py takes them."""
    rows = [
        (f"`--{name.replace('_', '-')}`", value_of(name, args[name]))
        for name in RECIPE
        if args.get(name) not in (None, False)
    ]
    world, versions = run.get("world_size"), run.get("versions") or {}
    if world:
        rows.append(("devices", f"{world} ({run.get('device')})"))
    if versions:
        rows.append(("versions", ", ".join(f"{name} {value}" for name, value in versions.items())))
    if run.get("git_commit"):
        rows.append(("MedSLIP's commit", run["git_commit"] + ", altered" * bool(run.get("git_dirty"))))
    parameters = sum(p.numel() for p in encoder.model.parameters())
    return table(("argument of `main.py`", "value"), [*rows, ("parameters here", f"{parameters:,}")])


def value_of(name: str, value) -> str:
    return Path(str(value)).name if name in PATHS and value != BIO_CLINICAL_BERT else str(value)


def validation(run: dict) -> str:
    """The validation of these weights: of retrieval.json with its intervals, if it is theirs, else of the log."""
    state, retrieval = run["state"], run["retrieval"]
    line = next((one for one in run["log"] if one.get("step") == state.get("step")), {})
    values = {name.removeprefix("val_"): x for name, x in line.items() if name.startswith("val_")}
    if not values:
        return "The run's log has no validation of these weights.\n"
    intervals = {}
    if retrieval and abs(retrieval["score"] - values["score"]) < 0.01:  # main.py --evaluate, of the same weights
        values, intervals = retrieval["metrics"], retrieval["ci95"]
    rows = [
        (f"`{name}`", f"{value:.4g}", interval(intervals.get(name), "{:.4g}"))
        for name, value in values.items()
        if name not in ("pairs", "score")
    ]
    without = "" if intervals else " `main.py --evaluate` gives them intervals."
    return (
        f"The validation split, after {state['epoch']} epochs ({state['step']} steps); recalls in percent.{without} A "
        "checkpoint that was picked as the best on this split looks a little better on it than on new pairs.\n\n"
        + table(("metric", "value", "95% interval"), rows)
    )


def interval(found, form: str) -> str:
    return " to ".join(form.format(one) for one in found) if found else "none"


def probe(folder: Path, encoder) -> str:
    """A probe's metrics with their intervals, in percent. Raises InputError if `folder` is no output folder of
    main_linear.py, or its probe is of other weights."""
    if not (folder / "results.json").is_file():
        raise InputError(f"--probes {folder}: holds no results.json: give an output folder of main_linear.py")
    found = read_probe(folder)
    given = found["encoder"].get("pretrained")
    if given and Path(given).exists() and not Path(given).samefile(encoder.path):
        raise InputError(f"--probes {folder}: of {given}, and not of {encoder.path}: leave it out")
    every = metrics.flat(found)
    shown = [name for name in SHOWN if every.get(name) is not None] + [
        name for name in every if name.endswith(".auroc")
    ]
    rows = [(cell(name), percent(every[name]), interval(scaled(found["ci95"].get(name)), "{:.2f}")) for name in shown]
    kind = ", ".join(f"{name} {value}" for name, value in found["selected"].items())
    note = PHANTOMS if are_phantoms((found["run"].get("args") or {}).get("root")) else ""
    return (
        f"### Probe: {cell(found['dataset'])}\n\n{found['n_train']} training and {found['n_test']} test cases, "
        f"classes {cell(', '.join(found['classes']))}; {cell(kind)}. In percent: macro averages, then each class; "
        "intervals are bootstrapped over the test split's patients, of one probe of one training.\n\n"
        + table(("metric", "value", "95% interval"), rows) + note
    )  # fmt: skip


def scaled(found):
    return [100 * one for one in found] if found else None


def licences(args: dict) -> str:
    """What to look at before these weights are passed on; no verdict."""
    items = [
        f"the terms of the data that they were trained on ({cell(args.get('dataset') or 'not known')}): may "
        "weights be derived from it and shared, and with whom? Of ROCO and ROCOv2, look at the Creative Commons "
        "licence of the set and at those of its articles' images, some of which exclude commercial use or changes",
        "the terms of the weights that the run began with, `--pretrained` above, and of what those were trained on",
    ]
    if args["arch"].startswith("medclip_"):
        items.append("MedCLIP's terms, if those were its weights: it was trained on MIMIC-CXR and CheXpert")
    if args["arch"].startswith("medclip_") or args.get("text_model") == BIO_CLINICAL_BERT:
        items.append("those of Bio_ClinicalBERT, if it was its text tower: it was trained on notes of MIMIC-III, to "
                     "which PhysioNet gives access under a data use agreement")  # fmt: skip
    lines = [
        "MedSLIP's code is under the MIT licence, which says nothing of these weights. Before they are passed on:\n"
    ]
    return "\n".join([*lines, *(f"- check {item};" for item in items[:-1]), f"- check {items[-1]}.\n"])


def table(head: tuple, rows: list[tuple]) -> str:
    lines = [head, ["---"] * len(head), *([cell(str(value)) for value in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def cell(text: str) -> str:
    """A name as text of Markdown: no table, tag or line of its own."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
