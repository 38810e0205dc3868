"""Looks at the site of the documentation with a browser: site_page.py SITE [--screens FOLDER]

Serves the folder SITE and opens some of its pages in Debian's chromium, from 390 to 1440 px, light and dark. Checks that nothing scrolls sideways but tables
and code, that pictures are there, that the search finds a page, and that nothing is asked from another site. --screens writes pictures. Needs PyPI's
playwright. Prints `the site is right` at the end.
"""

import argparse
import functools
import http.server
import pathlib
import threading

from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
PAGES = {
    "home": "index.html",
    "tutorial": "docs/tutorial-laptop.html",
    "command-line": "docs/command-line.html",
    "configuration": "docs/configuration.html#http-ports",
    "live-page": "docs/live-page.html",
    "plots": "docs/BENCHMARKS.html#plots-of-a-small-load",
}
WINDOWS = [(390, "light"), (390, "dark"), (768, "light"), (1440, "light"), (1440, "dark")]


class Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def look(browser, url, name, path, screens):
    for width, scheme in WINDOWS:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        faults, requested = [], []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("requestfailed", lambda request: faults.append(f"failed: {request.url}"))
        page.on("response", lambda answer: faults.append(f"{answer.status}: {answer.url}") if answer.status >= 400 else None)
        page.on("request", lambda request: requested.append(request.url))
        page.goto(f"{url}/{path}", wait_until="networkidle")
        found = page.evaluate("document.documentElement.scrollWidth")
        assert found <= width, f"{path}: {found} px in a window of {width} px"
        # Tables and code have their own scroll bars.
        wide = page.evaluate(
            """() => [...document.querySelectorAll('main *')].filter(one => !one.closest('.table-wrapper, pre')
                 && one.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(one => one.outerHTML.slice(0, 200))"""
        )
        assert not wide, f"{path}: wider than a window of {width} px: {wide[:3]}"
        broken = page.evaluate("[...document.images].filter(one => !one.complete || one.naturalWidth === 0).map(one => one.src)")
        assert not broken, f"{path}: {broken}"
        others = [found for found in requested if not found.startswith((url, "data:"))]
        assert not others and not faults, (path, others, faults)
        if screens:
            page.screenshot(path=screens / f"site-{name}-{width}-{scheme}.png", full_page=False)
        context.close()


def searches(browser, url):
    page = browser.new_page()
    page.goto(url + "/index.html", wait_until="networkidle")
    page.keyboard.press("/")
    page.keyboard.type("quarantine")
    page.wait_for_selector("#mdbook-searchresults a")
    links = page.eval_on_selector_all("#mdbook-searchresults a", "all => all.map(one => one.getAttribute('href'))")
    assert any("docs/alerts.html" in link for link in links), links
    page.close()


def main():
    options = argparse.ArgumentParser()
    options.add_argument("site", type=pathlib.Path)
    options.add_argument("--screens", type=pathlib.Path)
    options = options.parse_args()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=options.site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, path in PAGES.items():
            look(browser, url, name, path, options.screens)
        searches(browser, url)
        browser.close()
    server.shutdown()
    print("the site is right")


if __name__ == "__main__":
    main()
