"""Take a picture of one trace's waterfall in the browser viewer.

    python docs/take_screenshot.py TRACE_ID --port 15000 --out docs/trace.png

Needs a running viewer (`./dev viewer`), `pip install playwright`, and a Chromium (`apt-get install chromium`).
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import click

from everwarm.viewer import DEFAULT_PORT, trace_url

# Names by which distributions call it.
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# The first page after a start compiles its scripts; it took 5 s on a busy two-core machine.
_PAGE_WAIT_MS = 60_000
# Longer than the panel's animation takes between two frames.
_SETTLE_MS = 400


@click.command()
@click.argument("trace_id")
@click.option("--port", default=DEFAULT_PORT, show_default=True, help="Port of the viewer.")
@click.option("--out", "picture", default="docs/trace.png", show_default=True, type=click.Path(path_type=Path))
@click.option("--span", default="handler", show_default=True, help="Span whose attributes are shown beside the bars.")
@click.option("--width", default=1500, show_default=True)
@click.option("--height", default=760, show_default=True)
@click.option("--browser", default=None, help="Path of the Chromium to use.")
def main(trace_id: str, port: int, picture: Path, span: str, width: int, height: int, browser: str | None) -> None:
    """Open TRACE_ID (32 hex digits) in the viewer, show its execution timeline, and save a picture of it."""
    if not re.fullmatch("[0-9a-f]{32}", trace_id):
        raise click.UsageError("a trace id has 32 lower-case hex digits; `everwarm traces` shows the first 8")
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise click.ClickException("playwright is not installed: pip install playwright") from None
    executable = browser or next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if executable is None:
        raise click.ClickException("no Chromium found: apt-get install chromium, or pass --browser")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            page = chromium.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(_PAGE_WAIT_MS)
            page.goto(trace_url(port, trace_id))
            # Full screen hides the list of traces behind the panel.
            page.get_by_label("Show execution timeline").click()
            page.get_by_label("Full screen").click()
            page.get_by_text(re.compile(r"^\d+(\.\d+)?\s?m?s$")).first.wait_for()
            _widen_the_timeline(page, round(width * 0.55))
            # By selector: the viewer hides the panel from assistive technology while its assistant is open.
            row = page.locator("[role=dialog]").get_by_text(span, exact=True)
            if row.count():
                row.first.click()
            page.mouse.move(width - 5, height - 5)
            picture.parent.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=str(picture), animations="disabled")
        except Error as error:
            raise click.ClickException(f"the viewer at port {port} did not show this trace: {error.message}") from None
        finally:
            chromium.close()
    click.echo(picture)


def _widen_the_timeline(page: Any, to_x: int) -> None:
    """Drag the border between the bars and the attributes to `to_x`. It has no name, only a cursor."""
    # The panel slides and grows into place, so its border counts once it stayed where it was from one look to the next.
    border = page.wait_for_function(
        """() => {
            const boxes = [...document.querySelectorAll('[role=dialog] *')]
                .filter(element => getComputedStyle(element).cursor.endsWith('-resize'))
                .map(element => element.getBoundingClientRect())
                .filter(box => box.height > 200 && box.width < 20 && box.x > 50)
                .sort((one, other) => one.x - other.x);
            if (boxes.length === 0) return false;
            const at = [boxes[0].x + boxes[0].width / 2, boxes[0].y + boxes[0].height / 2];
            const stayed = window.seenBorder && window.seenBorder.every((value, index) => value === at[index]);
            window.seenBorder = at;
            return stayed ? at : false;
        }""",
        polling=_SETTLE_MS,
    ).json_value()
    page.mouse.move(*border)
    page.mouse.down()
    page.mouse.move(to_x, border[1], steps=10)
    page.mouse.up()


if __name__ == "__main__":
    main()
