"""Takes a picture of a DAG run's graph in Airflow's pages; runs in Airflow's environment.

usage: python airflowshot.py BASE_URL DAG_ID DAG_RUN_ID OUT.png CHROMIUM
Prints the tasks that the graph shows as one JSON list.
"""

import json
import sys

from playwright.sync_api import sync_playwright

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 90_000
NODES = ".react-flow__node"


def main(base: str, dag: str, run: str, out: str, chromium: str) -> None:
    """Open the run, show its graph with all groups open, and save what is seen."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 2400, "height": 760})
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"{base}/dags/{dag}/runs/{run}", wait_until="domcontentloaded")
        page.get_by_label("Show Graph").first.click()
        page.get_by_test_id("expand-all-button").click()
        page.get_by_label("Collapse Details Panel").click()
        page.wait_for_selector(f"{NODES}:has-text('gate')")
        page.wait_for_timeout(1500)  # the groups move to their places
        page.get_by_label("fit view").or_(
            page.locator(".react-flow__controls-fitview")
        ).first.click()
        page.wait_for_timeout(1500)
        found = [node.inner_text() for node in page.query_selector_all(NODES)]
        page.screenshot(path=out)
        browser.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
