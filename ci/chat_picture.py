"""Ask one question on the chat page in a real browser, and take its picture.

python ci/chat_picture.py --checkpoint DIR [--compare BASE] --out chat.png [words for `tune chat`]

Starts `tune chat --ui`, types the prompt in Chromium, waits for the answer, takes the picture,
prints the answers, and ends the page with Ctrl-C. Needs playwright's Python package and a Chromium.
"""

import argparse
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

from playwright.sync_api import Page, expect, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """Return this program's arguments, and those that it leaves to `tune chat`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--compare")
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--out", type=Path, default=Path("chat.png"))
    parser.add_argument("--width", type=int, default=1400, help="of the window, in pixels")
    parser.add_argument("--height", type=int, default=900, help="of the window, in pixels")
    parser.add_argument("--tune", default=str(Path(sys.executable).parent / "tune"))
    parser.add_argument("--timeout", type=float, default=300, help="for all of it, in seconds")
    return parser.parse_known_args()


@contextmanager
def served(command: list[str], seconds: float) -> Iterator[str]:
    """Run `command` while the page is needed; yield the address that it prints.

    Raises:
        SystemExit: It did not print one, or did not end as it should on Ctrl-C.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else deaf, if started so by a shell
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    timer = Timer(seconds, server.kill)
    timer.start()
    said = ""
    try:
        for line in server.stderr or ():
            said += line
            if found := re.search(r"https?://\S+:\d+", line):
                yield found[0]
                break
        server.send_signal(signal.SIGINT)
        said += server.communicate(timeout=60)[1]
    finally:
        timer.cancel()
        server.kill()
    if server.returncode != 0:
        raise SystemExit(f"{' '.join(command)} exited {server.returncode}:\n{said}")


def ask(page: Page, prompt: str) -> list[str]:
    """Return the answers to `prompt`, one a model."""
    box = page.get_by_placeholder("Ask something")
    box.fill(prompt)
    box.press("Enter")
    expect(box).to_be_empty()
    page.locator(".submit-button").wait_for()
    page.wait_for_timeout(500)  # the last of it is drawn
    return [answer.inner_text() for answer in page.locator("[data-testid=bot]").all()]


def main() -> int:
    """Take the picture."""
    options, rest = arguments()
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        print(f"no browser found: none of {', '.join(BROWSERS)} is on the PATH", file=sys.stderr)
        return 3
    command = [options.tune, "chat", "--ui", "--port", "0", "--checkpoint", options.checkpoint]
    command += ["--compare", options.compare] if options.compare else []
    with served([*command, *rest], options.timeout) as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": options.width, "height": options.height})
        page.set_default_timeout(1000 * options.timeout)
        expect.set_options(timeout=1000 * options.timeout)
        page.goto(address)
        answers = ask(page, options.prompt)
        page.screenshot(path=options.out)
        browser.close()
    print("\n---\n".join(answers))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
