"""A page that shows runs of main.py while they live, and after: progress, curves, rate, time left, last warnings.

python tools/watch.py runs/vit --port 8000
python tools/watch.py runs/vit runs/resnet --once runs.html

Open http://127.0.0.1:8000. The page is served to this machine alone (from another: `ssh -L 8000:127.0.0.1:8000 HOST`),
reads the files in the runs' folders, and neither asks nor changes a run. --once writes the page as it is now, and ends.
"""

import argparse
import contextlib
import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import distributed
import options
import utils
from tools.watch_page.state import read_state
from utils import InputError

PAGE = Path(__file__).parent / "watch_page" / "page.html"
EMBEDDED = "<!-- data -->"  # where a page that stands alone has its data
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


def main(args) -> None:
    folders = [Path(run).expanduser().absolute() for run in args.runs]
    if args.once:
        data = json.dumps(states(folders)).replace("<", "\\u003c")  # no text in it ends the script
        page = PAGE.read_text(encoding="utf-8")
        utils.write_text(
            args.once, page.replace(EMBEDDED, f'<script type="application/json" id="data">{data}</script>')
        )
        print(f"page: {args.once}")
        return
    if args.port > 65535:
        raise InputError(f"--port {args.port}: give 0 to 65535")
    try:
        server = ThreadingHTTPServer(("127.0.0.1", args.port), handler(folders))
    except OSError as error:
        raise InputError(f"--port {args.port}: {error.strerror}: give another") from None
    server.daemon_threads = True
    with server, contextlib.suppress(KeyboardInterrupt):
        print(f"http://127.0.0.1:{server.server_port} shows {', '.join(map(str, folders))}; Ctrl-C ends it", flush=True)
        server.serve_forever()


def states(folders: list[Path]) -> list[dict]:
    return [read_state(folder) for folder in folders]


def handler(folders: list[Path]):
    """The class that answers the two requests that there are."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 60  # seconds; browsers open connections for later, each of which holds a thread

        def do_GET(self):
            # A page of another site may have its name resolved to this machine; its requests still carry that name.
            if not re.fullmatch(r"(127\.0\.0\.1|localhost)(:\d+)?", self.headers.get("Host", "")):
                self.answer(403, "text/plain", b"for 127.0.0.1 and localhost alone\n")
            elif self.path == "/":
                self.answer(200, "text/html", PAGE.read_bytes())
            elif self.path == "/data.json":
                self.answer(200, "application/json", json.dumps(states(folders), allow_nan=False).encode())
            else:
                self.answer(404, "text/plain", b"there are / and /data.json\n")

        def answer(self, code: int, kind: str, body: bytes) -> None:
            with contextlib.suppress(ConnectionError, TimeoutError):  # the browser has left
                self.send_response(code)
                for name, value in {**HEADERS, "Content-Type": f"{kind}; charset=utf-8"}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    return Handler


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folders of main.py, also such as will come")
    parser.add_argument("--port", type=options.not_negative, default=8000, help="0 is any free one (default: 8000)")
    parser.add_argument("--once", metavar="FILE", help="write the page as it is now, and end")
    distributed.run_script(main, parser.parse_args())
