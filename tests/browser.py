"""A real browser for the pages that are tested."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

# Nothing that it would ask of a network by itself.
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's, without a window; the test is skipped where there is none."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=list(QUIET))
        yield opened
        opened.close()


WIDTHS = (1200, 390)  # of a desk and of a phone, in pixels
SCHEMES = ("light", "dark")
AXE_OPTIONS = {"rules": {"color-contrast": {"enabled": False}}}
LEAST_CONTRAST = 4.5  # WCAG 2.2, 1.4.3: of text to what it stands on
# What a reader would stumble over on the page as it is shown: it moves sideways, or a text is too
# pale, with colours laid over each other as the browser does it (axe has less to say of those, and
# takes seconds where there are many).
FAULTS = """least => {
  const faults = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) faults.push(`the page is ${root.scrollWidth} wide`);
  const rgba = text => {
    const numbers = text.match(/^rgba?\\((.*)\\)$/)[1].split(/[ ,/]+/).map(Number);
    return numbers.length < 4 ? [...numbers, 1] : numbers;
  };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
  const behind = node => {
    if (node === null) return rgba(getComputedStyle(root).backgroundColor)[3]
      ? rgba(getComputedStyle(root).backgroundColor)
      : matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18, 1] : [255, 255, 255, 1];
    const own = rgba(getComputedStyle(node).backgroundColor);
    return own[3] === 1 ? own : [...over(own, behind(node.parentElement)), 1];
  };
  const light = color => {
    const linear = color.slice(0, 3).map(c => c / 255)
      .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode, node = text.parentElement;
    if (!text.data.trim() || ["SCRIPT", "STYLE", "title"].includes(node.tagName)) continue;
    if (!node.checkVisibility({visibilityProperty: true})) continue;
    const style = getComputedStyle(node), ground = behind(node);
    const color = rgba(node instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(over(color, ground)), light(ground)].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < least)
      faults.push(`${contrast.toFixed(2)}: ${text.data.trim().slice(0, 40)} (${style.color})`);
  }
  return faults;
}"""


def page_faults(browser: Browser, url: str) -> dict[tuple[int, str], list[str]]:
    """What is wrong with a page at each width, light and dark, with everything that can be unfolded
    unfolded; and, at width 0, what it complained of or asked for beside itself, and what axe says
    of names, roles and words.
    """
    from axe_playwright_python.sync_playwright import Axe

    faults = {}
    for scheme in SCHEMES:
        context = browser.new_context(color_scheme=scheme, offline=True)
        page = context.new_page()
        said: list[str] = []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("request", lambda request, said=said: said.append(request.url))
        page.goto(url)
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
            faults[width, scheme] = page.evaluate(FAULTS, LEAST_CONTRAST)
        if scheme == SCHEMES[0]:  # names and roles have no colour
            violations = Axe().run(page, options=AXE_OPTIONS).response["violations"]
            said += [f"{each['id']}: {each['nodes'][0]['html'][:100]}" for each in violations]
        faults[0, scheme] = [each for each in said if each != url and not each.startswith("data:")]
        context.close()
    return faults
