"""Serve the Perfetto UI under an origin of its own, as ui.perfetto.dev does.

`python uiserver.py DIRECTORY [HEADER VALUE]` prints its port.
It stands in for the public site, whose framing header could be set (`X-Frame-Options DENY`).
"""

from __future__ import annotations

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer


class Handler(SimpleHTTPRequestHandler):
    def end_headers(self) -> None:
        if len(sys.argv) > 3:
            self.send_header(sys.argv[2], sys.argv[3])
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=sys.argv[1])) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
