"""What the pages of the tools have in common: templates that escape, and pictures within the page."""

import base64
import io
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image


def environment(folder: Path) -> Environment:
    """Of the templates in a folder, which may include report_page/page.css."""
    return Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent / "report_page"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def data_uri(image: Image.Image, side: int) -> str:
    """A picture of `side` pixels at most."""
    image = image.copy()
    image.thumbnail((side, side))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
