"""The sections as a page of text, or as one HTML page with examples and their views as the encoder sees them."""

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image

import main_linear
from data import augment, images, views
from data.sets import Pairs
from evaluation import probes
from tools import pages
from tools.checks.section import FAULT, NOTE, Example, Section
from tools.checks.subject import Subject
from utils import InputError

LISTED = 1000  # names in a list of the page
WIDTH = 120


def as_text(command: str, sections: list[Section]) -> str:
    """A page of text: each section with its verdict, and what speaks for it."""
    lines = [command, ""]
    for section in sections:
        lines.append(f"[{section.verdict}] {section.title}")
        for verdict, text in section.lines:
            mark = {FAULT: "  FAULT ", NOTE: "  note  "}.get(verdict, "        ")
            indents = {"initial_indent": mark, "subsequent_indent": " " * 10}
            lines += textwrap.wrap(text, WIDTH, break_on_hyphens=False, break_long_words=False, **indents)
    return "\n".join([*lines, "", summary(sections)])


def summary(sections: list[Section]) -> str:
    faults, notes = (sum(verdict == one for s in sections for verdict, _ in s.lines) for one in (FAULT, NOTE))
    counts = f"{faults} fault{'s' * (faults != 1)}, {notes} note{'s' * (notes != 1)}"
    return f"{counts}: " + ("a run would fail" if faults else "nothing was found that would end a run")


def as_html(command: str, sections: list[Section], subject: Subject, args) -> str:
    views_of = Views(subject, args)

    def drawn(example: Example) -> dict:
        return {"text": example.text, "images": [views_of(*one) for one in example.images]}

    contents = [
        {
            "title": section.title,
            "verdict": section.verdict,
            "lines": section.lines,
            "named": [(what, names[:LISTED], len(names)) for what, names in section.named.items()],
            "examples": [(what, [drawn(one) for one in some]) for what, some in section.examples.items()],
        }
        for section in sections
    ]
    page = pages.environment(Path(__file__).parent).get_template("page.html.j2")
    return page.render(command=command, summary=summary(sections), sections=contents, views=views_of.words)


class Views:
    """An image of a split, and its views as the encoder would see them in the first epoch, as data URIs."""

    def __init__(self, subject: Subject, args):
        self.subject, self.args = subject, args
        trains = hasattr(args, "objective")
        self.words = (
            f"Views of {args.image_size} pixels, as --objective {args.objective} with --seed {args.seed} cuts and "
            "changes them in the first epoch, before they are normalised." if trains
            else f"The view of {args.image_size} pixels that the encoder gets, before it is normalised."
        )  # fmt: skip

    def __call__(self, name: str, number: int) -> dict:
        """-> `title`, `picture` and `views`; without those two if the image cannot be read."""
        data = self.subject.splits[name].data
        found = {"title": f"{name}: {data.ids[number]}", "picture": None, "views": []}
        try:
            image = images.read_image(data.path(number)) if isinstance(data, Pairs) else None
            picture = images.as_picture(image) if image else data[number]
        except InputError:
            return found
        if isinstance(data, Pairs):
            dataset = views.TrainViews(
                {number: picture}, None, self.args.objective, self.args.image_size, self.args.seed
            )
            batch = dataset.__getitems__([(0, number)])
        else:
            fit = main_linear.view_of(self.args, probes.named(self.args.probe), data)
            dataset = views.WholeImages({number: picture}, None, self.args.image_size, fit)
            batch = dataset.__getitems__([number])
        made = augment.make_views(batch, (0.0,) * 3, (1.0,) * 3, batch["order"].device)
        pixels = [(view[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8) for view in made]
        found["picture"] = pages.data_uri(Image.fromarray(picture.levels[0]), 200)
        found["views"] = [pages.data_uri(Image.fromarray(one), 112) for one in pixels]
        return found
