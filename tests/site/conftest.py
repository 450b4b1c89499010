"""The site is built once and looked at by every test here; a browser opens it as files, without a server."""

from __future__ import annotations

import os
import shutil

import pytest

CHROMIUM = os.environ.get("SOFTGATE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
#: Generous: a machine that is busy with other work needs many times what an idle one does.
PATIENCE_MS = 180_000


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """What the build reports about the site of the published records."""
    pytest.importorskip("mkdocs", reason="the site needs the extra docs: pip install 'softgate[docs]'")
    from softgate.lab.site import build_site

    return build_site(tmp_path_factory.mktemp("report") / "site")


@pytest.fixture(scope="session")
def site(built):
    """Folder of the built site."""
    return built.front.parent


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine; install it or set SOFTGATE_CHROMIUM to its path")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE_MS)
        yield found
        found.close()


@pytest.fixture
def visit(browser, site):
    """``visit(path, **context)`` opens a page of the site; the page knows its console messages."""
    contexts = []

    def open_page(path, **settings):
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.messages = []
        page.on("console", lambda message: page.messages.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: page.messages.append(f"exception: {error}"))
        page.goto((site / path.partition("?")[0]).as_uri() + path[len(path.partition("?")[0]) :])
        return page

    yield open_page
    for context in contexts:
        context.close()
