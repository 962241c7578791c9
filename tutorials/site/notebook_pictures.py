"""A Sphinx directive that shows the pictures of a notebook, each a link to it."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


class NotebookPictures(SphinxDirective):
    """Show every picture of the notebook that is named, a path seen from the root of the source."""

    required_arguments = 1
    has_content = False
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        """Return the pictures in a box, each a link to the notebook."""
        name = self.arguments[0]
        path = Path(self.env.srcdir) / name
        self.env.note_dependency(str(path))
        folder = Path(self.env.doctreedir) / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        page = Path(self.env.doc2path(self.env.docname)).parent
        address = self.env.app.builder.get_relative_uri(self.env.docname, path.stem)
        box = nodes.container(classes=["pictures"])
        for number, (heading, picture) in enumerate(pictures(path)):
            file = folder / f"{path.stem}-{number}.png"
            file.write_bytes(picture)
            uri = Path(os.path.relpath(file, page)).as_posix()
            link = nodes.reference("", "", internal=True, refuri=address)
            link += nodes.image(uri=uri, alt=heading)
            box += nodes.paragraph("", "", link)
        return [box]


def pictures(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield each PNG that a notebook shows, with the heading under which it stands."""
    heading = path.stem
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        found = _HEADING.findall("".join(cell["source"])) if cell["cell_type"] == "markdown" else []
        heading = found[-1] if found else heading
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                yield heading, base64.b64decode("".join(output["data"]["image/png"]))


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("notebook-pictures", NotebookPictures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
