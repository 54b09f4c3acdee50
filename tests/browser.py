"""Opens a page in Chromium, where there is one: what the console says, and whom the page asks."""

import re
import shutil
import socketserver
import subprocess
import tempfile
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
# Hosts that the browser asks by itself, whatever page it shows.
OWN = ("google.com", "googleapis.com", "gvt1.com")


class _Proxy(socketserver.ThreadingTCPServer):
    """Answers nothing; keeps the hosts it is asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        self.hosts: list[str] = []
        super().__init__(("127.0.0.1", 0), _Request)


class _Request(socketserver.StreamRequestHandler):
    server: _Proxy

    def handle(self) -> None:
        _, _, rest = self.rfile.readline().decode("latin-1").partition(" ")
        target = rest.partition(" ")[0]
        address = target if "://" in target else f"//{target}"
        self.server.hosts.append(urlsplit(address).hostname or rest)


def opened(page: Path) -> tuple[list[str], list[str]]:
    """The lines of the console and the hosts asked for. Every request goes by a proxy that counts.

    Skips the test where there is no browser.
    """
    if BROWSER is None:
        pytest.skip(f"none of {', '.join(NAMES)} is here")
    with _Proxy() as proxy, tempfile.TemporaryDirectory() as profile:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--enable-logging=stderr",
            "--v=0",
            f"--user-data-dir={profile}",
            f"--proxy-server=http://127.0.0.1:{proxy.server_address[1]}",
            "--proxy-bypass-list=<-loopback>",  # this machine too only by the proxy
            "--dump-dom",  # ends when the page and what it names are loaded
        ]
        try:
            done = subprocess.run(
                [BROWSER, *options, page.as_uri()], capture_output=True, text=True, timeout=120
            )
        finally:
            proxy.shutdown()
            thread.join()
    assert done.returncode == 0, done.stderr
    assert "</html>" in done.stdout, done.stderr
    asked = [h for h in proxy.hosts if not any(f".{h}".endswith(f".{own}") for own in OWN)]
    return re.findall(r"CONSOLE\S* (.*)", done.stderr), asked
