"""The site in headless Chromium: no errors, search, filters, keyboard, phone, dark colours, no scripts."""

import pytest

from softgate.papers._planned import PLANNED

pytestmark = pytest.mark.xdist_group("site")

PHONE = {"viewport": {"width": 375, "height": 740}}
PAGES = (
    "index.html",
    "papers/gated-attention.html",
    "papers/maxim.html",
    "api/normalizers.html",
    "guide/choosing.html",
)


@pytest.mark.parametrize("path", PAGES)
def test_a_page_opens_without_a_message_and_fits_a_phone(path, visit):
    page = visit(path, **PHONE)
    assert page.messages == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    wide = page.evaluate(
        """[...document.querySelectorAll("article *")].filter(e => e.getBoundingClientRect().right > 376
             && !e.closest(".scroll, pre, .md-typeset__scrollwrap, table, .md-typeset__table, .highlight")
             && e.checkVisibility()).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert wide == []


def visible(page):
    return page.locator("#cards > .card:visible").count()


def test_search_finds_narrows_and_says_how_many(visit):
    page = visit("index.html")
    assert visible(page) == 41 and page.locator("#count").inner_text() == "41 papers"
    page.locator("#query").press_sequentially("sigmoid")
    found = visible(page)
    assert 0 < found < 41 and page.locator("#count").inner_text() == f"{found} of 41 papers"
    assert page.locator("#cards a[href='papers/sigmoid-attention.html']").is_visible()
    assert page.locator("#also a").first.is_visible()
    page.locator("#query").press_sequentially(" no such thing")
    assert visible(page) == 0
    page.locator("#query").fill("GatedAttention")  # a method, in whatever letters
    assert page.locator("#cards a[href='papers/gated-attention.html']").is_visible()
    page.locator("#query").fill("")
    assert visible(page) == 41 and page.messages == []


def test_filters_by_room_and_verdict_combine_and_can_be_undone(visit):
    page = visit("index.html")
    attention = page.locator("button[data-value='attention']")
    attention.click()
    by_site = visible(page)
    assert attention.get_attribute("aria-pressed") == "true" and 0 < by_site < 41
    failed = page.locator("button[data-value='not reproduced']")
    failed.focus()
    page.keyboard.press("Enter")
    both = visible(page)
    assert 0 < both < by_site
    assert page.locator("#cards > .card:visible .verdict.bad").count() == both
    attention.click()
    assert attention.get_attribute("aria-pressed") == "false" and visible(page) > both
    page.goto(page.url.split("?")[0] + "?verdict=not+implemented")
    assert visible(page) == len(PLANNED) and page.messages == []


def test_the_keyboard_reaches_search_filters_and_cards_in_order(visit):
    page = visit("index.html")
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                """(() => { const e = document.activeElement; const outline = getComputedStyle(e).outlineStyle;
                return (e.id === "query" ? "query" : e.dataset.filter || (e.closest(".card") ? "card" : "other"))
                    + (outline === "none" ? " without outline" : ""); })()"""
            )
        )
        if seen[-1] == "card":
            break
    order = [seen.index(name) for name in ("query", "site", "verdict", "card")]
    assert order == sorted(order)
    assert not [name for name in seen if name.startswith(("query", "site", "verdict", "card")) and "without" in name]
    page.keyboard.press("Enter")
    page.wait_for_url("**/papers/*.html")


def test_without_scripts_every_card_is_there_and_no_dead_control(visit):
    page = visit("index.html", java_script_enabled=False, **PHONE)
    assert visible(page) == 41
    assert not page.locator("#find").is_visible()
    assert page.locator("#cards a").first.is_visible()
    page.locator("#cards a[href='papers/gated-attention.html']").click()
    page.wait_for_url("**/papers/gated-attention.html")
    page.locator("table.data").first.wait_for()
    page.locator("figure img").first.wait_for()


#: Text and the background it stands on, through transparent parents; a canvas turns any colour into bytes.
CONTRAST = """
(selector) => {
  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const bytes = (colours) => {
    pen.clearRect(0, 0, 1, 1);
    for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  return [...document.querySelectorAll(selector)].filter((e) => e.checkVisibility()).map((e) => {
    const under = [];
    for (let at = e; at; at = at.parentElement) under.unshift(getComputedStyle(at).backgroundColor);
    const [a, b] = [light(bytes(["white", ...under])), light(bytes(["white", ...under, getComputedStyle(e).color]))];
    return [e.className || e.tagName, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
  });
}
"""
TEXTS = ".verdict, .site, .card a, .card p, #find button, #find legend, #count, article h1, .soft, td, article a"


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(scheme, scripts, visit):
    for path in ("index.html", "papers/gated-attention.html"):
        page = visit(path, color_scheme=scheme, java_script_enabled=scripts)
        found = page.evaluate(CONTRAST, TEXTS)
        weak = {(name, round(ratio, 2)) for name, ratio in found if ratio < 4.5}
        assert len(found) > 30 and not weak
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_a_pressed_filter_stands_out(visit):
    for scheme in ("light", "dark"):
        page = visit("index.html?site=losses", color_scheme=scheme)
        ((_, ratio),) = page.evaluate(CONTRAST, "button[aria-pressed=true]")
        assert ratio >= 4.5


def test_what_can_be_used_has_a_name(visit):
    for path in ("index.html", "papers/gated-attention.html"):
        used, nameless = visit(path).evaluate(
            """(() => { const used = [...document.querySelectorAll("a[href], button, input, summary")]
                 .filter((e) => e.checkVisibility() && e.tabIndex >= 0);
               const name = (e) => e.ariaLabel || e.title || e.innerText.trim() || (e.labels || []).length;
               return [used.length, used.filter((e) => !name(e)).map((e) => e.outerHTML.slice(0, 200))]; })()"""
        )
        assert used > 10 and nameless == []
