"""What the pages of the tools have in common: templates that escape, and pictures within the page."""

import base64
import io
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from data import images
from utils import InputError

SIDE = 224  # pixels of a picture, at most


def environment(folder: Path) -> Environment:
    """Of the templates in a folder, which may include report_page/page.css, and have `picture` and `data_uri` below as
    filters."""
    templates = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent / "report_page"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"picture": picture, "data_uri": data_uri}
    return templates


def data_uri(image: Image.Image, side: int = SIDE) -> str:
    """A picture as a JPEG within the page, of `side` pixels at most."""
    image = image.copy()
    image.thumbnail((side, side))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def picture(location: str) -> str | None:
    """An image at its own aspect (data/locations.py) as a data URI; None where it cannot be read."""
    try:
        return data_uri(images.read_image(location))
    except InputError:
        return None
