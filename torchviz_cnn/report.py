"""A page of pictures that opens in any browser, from a folder, without a server."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from PIL import Image

from torchviz_cnn.files import all_or_nothing, write_atomically
from torchviz_cnn.version import __version__

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --paper: #fbfbf9; --soft: #6b7280; --edge: #d9dbe0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e9eb; --paper: #16181c; --soft: #9aa1ab; --edge: #33373e; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 4rem; color: var(--ink);
       background: var(--paper); font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .3rem; padding-top: .8rem; border-top: 1px solid var(--edge); }
p { max-width: 46rem; margin: .3rem 0 .9rem; }
nav a { margin-right: 1rem; white-space: nowrap; }
a { color: inherit; }
pre { overflow-x: auto; font-size: .82rem; line-height: 1.35; }
figure { margin: 0 0 1.2rem; }
figure img { max-width: 100%; height: auto; display: block; background: #fff;
             border: 1px solid var(--edge); border-radius: 4px; }
figcaption { color: var(--soft); font-size: .88rem; margin-top: .3rem; max-width: 46rem; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
"""


@dataclass(frozen=True)
class Plate:
    """A picture with its file name and a caption."""

    file: str
    image: Image.Image
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading, a sentence or two, preformatted text, and pictures.

    Lines of the preformatted text that begin with one of ``links``, followed by two spaces, lead to
    the picture whose file that names.
    """

    title: str
    text: str
    plates: Sequence[Plate] = field(default_factory=tuple)
    listing: str = ""
    links: Mapping[str, str] = field(default_factory=dict)


def write_picture(folder: str | Path, file: str, image: Image.Image) -> Path:
    """Write a PNG, never half-written."""

    def save(f: BinaryIO) -> None:
        # Written in 0.6 of the time of level 6, and a sixth larger (measured on the demo's page).
        image.save(f, format="PNG", compress_level=3)

    return write_atomically(Path(folder) / file, save)


def page(title: str, lead: str, sections: Sequence[Section]) -> bytes:
    """The HTML of a page, in UTF-8; its pictures are files beside it."""

    def address(plate: Plate) -> str:
        # By its bytes: a file's name need not be text in any encoding.
        return escape(quote(os.fsencode(plate.file), safe="@"), quote=True)

    links = " ".join(
        f'<a href="#s{number}">{escape(section.title)}</a>'
        for number, section in enumerate(sections)
    )
    body = []
    for number, section in enumerate(sections):
        body.append(f'<section id="s{number}"><h2>{escape(section.title)}</h2>')
        body.append(f"<p>{escape(section.text)}</p>")
        if section.listing:
            body.append(f"<pre>{_linked(section, number)}</pre>")
        body.append('<div class="row">')
        body += [
            f'<figure id="s{number}-{index}"><a href="{address(plate)}">'
            f'<img src="{address(plate)}" alt="{escape(plate.caption, quote=True)}"'
            f' width="{plate.image.width}" height="{plate.image.height}" loading="lazy"></a>'
            f"<figcaption>{escape(plate.caption)}</figcaption></figure>"
            for index, plate in enumerate(section.plates)
        ]
        body.append("</div></section>")
    html = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1><p>{escape(lead)}</p><nav>{links}</nav>"
        + "\n".join(body)
        + f"<footer>made by torchviz_cnn {escape(__version__)}</footer></body></html>\n"
    )
    return html.encode(errors="replace")


def _linked(section: Section, number: int) -> str:
    """The preformatted text of a section, its lines leading to their pictures."""
    there = {plate.file: f"#s{number}-{index}" for index, plate in enumerate(section.plates)}
    lines = []
    for line in section.listing.split("\n"):
        name, gap, rest = line.partition("  ")
        place = there.get(section.links.get(name, ""))
        shown = escape(name) if place is None else f'<a href="{place}">{escape(name)}</a>'
        lines.append(f"{shown}{gap}{escape(rest)}")
    return "\n".join(lines)


def write_page(folder: str | Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Write the pictures of all sections, then ``index.html``.

    Args:
        folder: made where it is missing.
        title, lead: heading and first sentence.
        sections: in order.

    Returns:
        The page's path.

    Raises:
        OSError: when the folder cannot be written or the disk is full.
    """
    html = page(title, lead, sections)
    with all_or_nothing(folder) as staging:
        for section in sections:
            for plate in section.plates:
                write_picture(staging, plate.file, plate.image)
        write_atomically(staging / "index.html", lambda file: file.write(html))
    return Path(folder) / "index.html"
