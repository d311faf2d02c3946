"""A self-contained HTML page: paragraphs, figures, and what they embed."""

import base64
import io
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from qgf.files import atomic_open

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: #1a1a1a;
  background: #fff; max-width: 50rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; line-height: 1.3; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: .9rem; border-top: 1px solid #ddd; }
.lead, figcaption, .note { color: #555; }
.result { font-size: 1.1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid #e4e4e4;
  vertical-align: top; overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid #1a1a1a; }
td.n, th.n { text-align: right; padding-right: 1.2rem; white-space: nowrap; }
tr.chosen { font-weight: 600; background: #eef6fb; }
.facts th { font-weight: 400; color: #555; width: 11rem; }
.config { columns: 13rem; padding: 0; list-style: none; font-size: .9rem; }
.config b { font-weight: 600; }
figure { margin: 1rem 0; break-inside: avoid; }
figcaption { font-size: .9rem; }
img, video { width: 100%; height: auto; display: block; }
.note { border-left: 3px solid #e69f00; padding-left: .8rem; }
pre { background: #f5f5f5; padding: .8rem 1rem; font-size: .82rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
@media print { body { margin: 0; max-width: none; font-size: 11pt; } h2 { break-after: avoid; } }
"""


class Page:
    """The report's body as it grows, and the folder in which its pictures are kept.

    Attributes:
        folder: in which the pictures are kept.
        parts: the HTML of the body so far.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts: list[str] = []

    def add(self, html: str) -> None:
        """Add a piece of HTML as it is.

        Args:
            html: a piece whose text is escaped.
        """
        self.parts.append(html)

    def note(self, text: str) -> None:
        """Add a note.

        Args:
            text: is escaped.
        """
        self.add(f'<p class="note">{escape(text)}</p>')

    def figure(self, name: str, figure: Figure, alt: str, caption: str) -> None:
        """Add a figure, and keep it as a PNG file in `folder`.

        Args:
            name: of the file, without its ending.
            figure: of matplotlib.
            alt: what is said of it where it cannot be seen; is escaped.
            caption: what stands under it; is escaped.
        """
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=150)
        with atomic_open(self.folder / f"{name}.png") as out:
            out.write(file.getvalue())
        image = f'<img src="{data_url("image/png", file.getvalue())}" alt="{escape(alt)}">'
        self.add(f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>")

    def write(self, path: Path, title: str) -> None:
        """Write the whole page, atomically. UserError if it cannot be written.

        Args:
            path: of the HTML file.
            title: of the page, which is escaped.
        """
        body = "\n".join(self.parts)
        with atomic_open(path, "w") as file:
            file.write(
                f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
                f'<meta name="viewport" content="width=device-width, initial-scale=1">'
                f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
                f"<body><main>\n<h1>{escape(title)}</h1>\n{body}\n</main></body></html>\n"
            )


def data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
