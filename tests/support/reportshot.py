"""Opens a report in a browser as people do; runs in Airflow's environment, which has the driver.

usage: python reportshot.py PAGE.html FOLDER CHROMIUM
Takes pictures into the folder, and prints what was seen as one JSON object.
"""

import json
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
VIEWS: dict[str, dict[str, Any]] = {
    "wide": {"viewport": WIDE, "color_scheme": "light"},
    "phone": {"viewport": NARROW, "color_scheme": "light", "has_touch": True},
    "dark": {"viewport": WIDE, "color_scheme": "dark"},
}
DRAWN = ".role-mark path, .role-mark line"
ALONE = "getComputedStyle(document.body).backgroundColor"


def main(page_file: str, folder: str, chromium: str) -> None:
    """Open the page in each view, and use it."""
    address = Path(page_file).resolve().as_uri()
    seen: dict[str, Any] = {}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        for name, view in VIEWS.items():
            page = browser.new_context(**view).new_page()
            told: list[str] = []
            asked: list[str] = []
            page.on("console", lambda message, told=told: told.append(message.text))
            page.on("pageerror", lambda error, told=told: told.append(str(error)))
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(address)
            page.screenshot(path=f"{folder}/{name}-top.png")
            seen[name] = {**_looked(page), **_used(page, name, folder), "told": told}
            seen[name]["asked"] = [url for url in asked if url != address]
            page.screenshot(path=f"{folder}/{name}.png", full_page=True)
        browser.close()
    print(json.dumps(seen))


def _looked(page: Any) -> dict[str, Any]:
    """Return what stands on the page before anybody touches it."""
    charts = page.query_selector_all("figure.chart svg")
    return {
        "charts": len(charts),
        "empty": sum(not chart.query_selector(DRAWN) for chart in charts),
        "overflow": page.evaluate("document.documentElement.scrollWidth - innerWidth"),
        "paper": page.evaluate(ALONE),
        "line": page.evaluate("getComputedStyle(document.querySelector('.role-mark path')).stroke"),
        "opened_ms": page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"),
        "images": page.evaluate("document.images.length"),
        "text": page.inner_text("body"),
    }


def _used(page: Any, name: str, folder: str) -> dict[str, Any]:
    """Return what pointer and keyboard bring out."""
    chart = page.locator("figure.chart").first
    mark = chart.locator(".role-mark path[aria-roledescription='point']").first
    chart.scroll_into_view_if_needed()
    mark.hover(force=True)
    pointed = chart.locator(".told").inner_text()
    chart.focus()
    page.keyboard.press("Home")
    first = chart.locator(".told").inner_text()
    page.keyboard.press("ArrowRight")
    second = chart.locator(".told").inner_text()
    row = page.locator(".row").first
    row.scroll_into_view_if_needed()
    row.locator(".t").nth(1).hover()
    hovered = page.locator("#panel").inner_text()
    row.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    keyed = page.locator("#panel").inner_text()
    page.screenshot(path=f"{folder}/{name}-transcripts.png")
    page.select_option("#pick-order", "stored")
    every = page.locator("#count").inner_text()
    page.check("#pick-side")
    side = page.locator("#count").inner_text()
    together = page.locator(".group").first.locator(".row").count()
    overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    page.screenshot(path=f"{folder}/{name}-side.png")
    return {
        "pointed": pointed,
        "keys": [first, second],
        "hovered": hovered,
        "keyed": keyed,
        "every": every,
        "side": side,
        "together": together,
        "overflow_side": overflow,
        "harm": page.evaluate("window.harm === undefined ? '' : String(window.harm)"),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
