"""Open a page in headless Chromium, light and dark, at desktop and phone width, and on paper; run by hand.

python tests/programs/browser.py report.html --out screenshots

Writes a PNG for each and a PDF. Exit code 1 if the page scrolls sideways, an image is broken, anything is fetched, or
the console has an error.
"""

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CHECK = """JSON.stringify({
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  broken: [...document.images].filter(one => !one.complete || one.naturalWidth === 0).length,
  images: document.images.length, height: document.documentElement.scrollHeight,
  dark: matchMedia('(prefers-color-scheme: dark)').matches,
  ground: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
  fetched: performance.getEntriesByType('resource').filter(one => !one.name.startsWith('data:')).map(one => one.name),
})"""


class Browser:
    """Chromium behind a pair of pipes (the DevTools protocol, messages ended by a zero byte)."""

    def __init__(self, executable: str, profile: str):
        to_read, self.to_write = os.pipe()
        self.from_read, from_write = os.pipe()

        def move():  # Chromium reads descriptor 3 and writes 4
            first, second = os.dup(to_read), os.dup(from_write)
            os.dup2(first, 3)
            os.dup2(second, 4)

        words = [executable, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                 "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]  # fmt: skip
        self.process = subprocess.Popen(words, preexec_fn=move, close_fds=False, stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(from_write)
        self.number, self.buffer, self.events, self.session = 0, b"", [], None

    def receive(self) -> dict:
        while b"\0" not in self.buffer:
            more = os.read(self.from_read, 1 << 20)
            if not more:
                sys.exit("the browser is gone")
            self.buffer += more
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method: str, **params) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                if "error" in answer:
                    sys.exit(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, name: str) -> None:
        while not any(event.get("method") == name for event in self.events):
            self.events.append(self.receive())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--out", type=Path, default=Path("screenshots"))
    parser.add_argument("--browser", default=None, help="default: chromium or google-chrome on the PATH")
    args = parser.parse_args()
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    executable = args.browser or next(filter(None, map(shutil.which, names)), None)
    if executable is None or not args.page.is_file():
        sys.exit("no Chromium on the PATH: give --browser" if executable is None else f"{args.page}: no such file")
    args.out.mkdir(parents=True, exist_ok=True)
    faults = []
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(executable, profile)
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        browser.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            browser.call(f"{domain}.enable")
        for scheme in ("light", "dark"):
            for device, width in (("desktop", 1280), ("phone", 390)):
                faults += photograph(browser, args, scheme, device, width)
        browser.call("Emulation.setEmulatedMedia", media="print", features=[])
        paper = browser.call("Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.69)
        (args.out / "paper.pdf").write_bytes(base64.b64decode(paper["data"]))
        browser.process.terminate()
        browser.process.wait()
    for fault in faults:
        print(f"fault: {fault}")
    sys.exit(1 if faults else 0)


def photograph(browser: Browser, args, scheme: str, device: str, width: int) -> list[str]:
    """One screenshot of the whole page -> what is wrong with it."""
    browser.events.clear()
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.call("Emulation.setEmulatedMedia", media="screen", features=media)
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1,
                 mobile=device == "phone")  # fmt: skip
    browser.call("Page.navigate", url=args.page.resolve().as_uri())
    browser.wait_for("Page.loadEventFired")
    found = json.loads(browser.call("Runtime.evaluate", expression=CHECK, returnByValue=True)["result"]["value"])
    clip = {"x": 0, "y": 0, "width": width, "height": min(found["height"], 16_000), "scale": 1}
    picture = browser.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
    path = args.out / f"{scheme}_{device}.png"
    path.write_bytes(base64.b64decode(picture["data"]))
    print(f"{path}: {width} x {found['height']}, {found['images']} images, {found['ink']} on {found['ground']}")
    errors = [event for event in browser.events if event.get("method") == "Runtime.exceptionThrown"
              or event.get("params", {}).get("entry", {}).get("level") == "error"]  # fmt: skip
    where = f"{scheme}, {device}"
    return [
        *([f"{where}: {found['wide']} pixels wider than the window"] if found["wide"] > 0 else []),
        *([f"{where}: {found['broken']} broken images"] if found["broken"] else []),
        *([f"{where}: fetched {found['fetched']}"] if found["fetched"] else []),
        *([f"{where}: not shown as {scheme}"] if found["dark"] != (scheme == "dark") else []),
        *(f"{where}: console: {json.dumps(event)[:200]}" for event in errors),
    ]


if __name__ == "__main__":
    main()
