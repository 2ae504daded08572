"""Opens every page of the site in Chromium and looks for what a reader would trip over.

    mkdocs build --strict && python tests/docs/check_pages.py [page …]

Each page is shown at 390 and 1,280 pixels, light and dark. There must be no error in the console,
no request to another host, no horizontal scroll of the page, and no image that is missing. Chromium
is Debian's (apt-get install chromium). With `--shots=FOLDER` it also takes a picture of each.
"""

import argparse
import functools
import http.server
import pathlib
import shutil
import sys
import threading

from playwright.sync_api import sync_playwright

SITE = pathlib.Path(__file__).parents[2] / "build" / "site"
BROKEN_IMAGES = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def listen(tab, base, found):
    """Adds a line to `found` for each error and each request to another host."""
    tab.on("console", lambda m: m.type == "error" and found.append(f"console: {m.text}"))
    tab.on("pageerror", lambda error: found.append(f"script: {error}"))
    own = (base, "data:", "blob:")
    tab.on("request", lambda r: r.url.startswith(own) or found.append(f"asks {r.url}"))


def problems_of(browser, base, page, shots):
    found = []
    for scheme in ("light", "dark"):
        tab = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 900})
        listen(tab, base, found)
        tab.goto(base + page, wait_until="load")
        for width in (1280, 390):
            tab.set_viewport_size({"width": width, "height": 900})
            if (overflow := tab.evaluate(OVERFLOW)) > 0:
                found.append(f"{overflow} pixels too wide at {width}")
            if shots:
                name = page.strip("/").replace("/", "_") or "home"
                tab.screenshot(path=shots / f"{name}_{width}_{scheme}.png")
        found += [f"missing image {image}" for image in tab.evaluate(BROKEN_IMAGES)]
        tab.close()
    return sorted(set(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", help="such as concepts/; by default all")
    parser.add_argument("--shots", type=pathlib.Path)
    arguments = parser.parse_args()
    pages = arguments.pages or sorted(
        path.parent.relative_to(SITE).as_posix().removeprefix(".") + "/"
        for path in SITE.rglob("index.html")
    )
    if not pages:
        sys.exit(f"{SITE} has no pages. Run `mkdocs build` first.")
    if arguments.shots:
        arguments.shots.mkdir(parents=True, exist_ok=True)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(SITE))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    failed = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for page in pages:
            base = f"http://127.0.0.1:{server.server_port}/"
            found = problems_of(browser, base, page.lstrip("/"), arguments.shots)
            failed += bool(found)
            for problem in found:
                print(f"{page}: {problem}")
        browser.close()
    print(f"pages: {len(pages) - failed} passed, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
