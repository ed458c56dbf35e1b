"""A web server on this machine that serves files and, when told so, breaks off, stalls, trickles, lies, redirects or
refuses. No test asks any other."""
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Faulty(BaseHTTPRequestHandler):
    "Serves `server.files` {path: bytes}; each request consumes one of `server.faults`, and is noted in `server.asked`"
    def do_GET(self):
        s = self.server
        fault = s.faults.pop(0) if s.faults else ""
        kind,_,value = fault.partition(" ")
        s.asked.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
        if kind == "status": return self.answer(int(value), b"")
        if kind == "redirect": return self.answer(302, b"", Location=value)
        if self.path not in s.files: return self.answer(404, b"")
        body = b"<html>please log in</html>"*1000 if kind == "wrong" else s.files[self.path]
        begin = 0
        asked = self.headers.get("Range")
        if asked and kind != "norange" and self.headers.get("If-Range") in (None, s.tag):
            begin = int(asked[6:-1])
            if begin >= len(body): return self.answer(416, b"", **{"Content-Range": f"bytes */{len(body)}"})
        if kind == "shifted": begin += 7
        rest = body[begin:]
        head = ({"Content-Length": len(rest)} | ({"Content-Range": f"bytes {begin}-{len(body)-1}/{len(body)}"} if begin
                                                 else {}) | ({"ETag": s.tag} if s.tag else {}))
        if kind == "chunked": head.pop("Content-Length")
        self.answer(206 if begin else 200, None, **head)
        try:
            if kind == "cut": self.wfile.write(rest[:int(value)])
            elif kind == "reset":
                self.wfile.write(rest[:int(value)])
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                self.connection.close()
            elif kind == "stall":
                self.wfile.write(rest[:int(value)])
                s.gone.wait(20)
            elif kind in ("trickle", "slow"):
                for k in range(0, len(rest), step := 1 if kind == "trickle" else 10_000):
                    self.wfile.write(rest[k:k+step])
                    self.wfile.flush()
                    if s.gone.wait(.05): return
            else: self.wfile.write(rest)
        except OSError: pass  # the client has given up

    def answer(self, status, body, **head):
        self.send_response(status)
        for k,v in head.items(): self.send_header(k.replace("_", "-"), str(v))
        if body is not None: self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body: self.wfile.write(body)

    def log_message(self, *args): pass


@contextmanager
def serving(files, tag='"v1"'):
    "Yield a server of `files` {path: bytes} with `.url`, `.faults`, `.asked`, `.tag`"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    server.daemon_threads = True
    server.files,server.faults,server.asked,server.tag,server.gone = files,[],[],tag,threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval":.02}, daemon=True).start()
    try: yield server
    finally:
        server.gone.set()
        server.shutdown()
        server.server_close()

def until(condition, seconds=20):
    "Wait until `condition()` holds"
    end = time.monotonic()+seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(.01)
