"""The system's Firefox, driven by its own protocol (WebDriver BiDi): playwright needs a Firefox that it has patched.

The fixture `firefox` opens pages, runs JavaScript in them and presses keys. Only the browser that it started is ended.
"""
import json
import re
import shutil
import subprocess
import time

import pytest

KEYS = {"End": "\ue010", "Home": "\ue011", "ArrowLeft": "\ue012", "ArrowUp": "\ue013", "ArrowRight": "\ue014",
        "ArrowDown": "\ue015", "Space": " "}
QUIET = {"app.update.enabled": False, "browser.safebrowsing.downloads.remote.enabled": False,
         "browser.safebrowsing.malware.enabled": False, "browser.safebrowsing.phishing.enabled": False,
         "browser.shell.checkDefaultBrowser": False, "datareporting.policy.dataSubmissionEnabled": False,
         "extensions.getAddons.cache.enabled": False, "extensions.update.enabled": False,
         "network.captive-portal-service.enabled": False, "network.connectivity-service.enabled": False,
         "network.dns.disablePrefetch": True, "network.prefetch-next": False, "network.proxy.type": 0,
         "services.settings.server": "data:,#remote-settings-dummy/v1", "toolkit.telemetry.server": ""}


class Firefox:
    """A tab of a Firefox that listens at the address `url`

    `asked` are the addresses that its pages asked for, `complaints` the errors of their scripts."""
    def __init__(self, url):
        websocket = pytest.importorskip("websocket", reason="websocket-client is not installed")
        self.socket = websocket.create_connection(f"{url}/session", timeout=60, suppress_origin=True)
        self.number, self.asked, self.complaints = 0, [], []
        self.ask("session.new", capabilities={})
        self.ask("session.subscribe", events=["network.beforeRequestSent", "log.entryAdded"])
        self.tab = self.ask("browsingContext.getTree")["contexts"][0]["context"]

    def ask(self, method, **params):
        "Send a command; return its result"
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while True:
            told = json.loads(self.socket.recv())
            if told.get("method") == "network.beforeRequestSent":
                self.asked.append(told["params"]["request"]["url"])
            if told.get("method") == "log.entryAdded" and told["params"]["level"] == "error":
                self.complaints.append(told["params"]["text"])
            if told.get("id") != self.number: continue
            assert told["type"] == "success", told
            return told["result"]

    def open(self, url): self.ask("browsingContext.navigate", context=self.tab, url=url, wait="complete")

    def run(self, function):
        "Return what a JavaScript function without arguments returns, or what its promise holds"
        told = self.ask("script.evaluate", target={"context": self.tab}, awaitPromise=True,
                        expression=f"(async () => JSON.stringify(await ({function})()))()")
        assert told["type"] == "success", told.get("exceptionDetails", {}).get("text")
        return json.loads(told["result"]["value"])

    def press(self, key):
        "Press a key, as a hand does"
        both = [{"type": kind, "value": KEYS[key]} for kind in ("keyDown", "keyUp")]
        self.ask("input.performActions", context=self.tab, actions=[{"type": "key", "id": "keys", "actions": both}])


def _address(process, log, seconds=60):
    "Return where the browser listens, as soon as it says so"
    end = time.monotonic()+seconds
    while time.monotonic() < end:
        if found := re.search(r"WebDriver BiDi listening on (ws://\S+)", log.read_text()): return found[1]
        assert process.poll() is None, f"Firefox ended:\n{log.read_text()[-2000:]}"
        time.sleep(.1)
    raise AssertionError(f"Firefox does not listen:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def firefox(tmp_path_factory):
    "One browser for a module; its absence skips the test"
    program = shutil.which("firefox") or shutil.which("firefox-esr")
    if not program: pytest.skip("no Firefox on PATH: apt-get install firefox-esr")
    folder = tmp_path_factory.mktemp("firefox")
    log, profile = folder/"log", folder/"profile"
    profile.mkdir()
    (profile/"user.js").write_text("".join(f"user_pref({json.dumps(k)}, {json.dumps(v)});\n" for k, v in QUIET.items()))
    with log.open("w") as out:
        process = subprocess.Popen([program, "--headless", "--no-remote", "--profile", profile,
                                    "--remote-debugging-port=0"], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        browser = Firefox(_address(process, log))
        yield browser
        browser.socket.close()
    finally:
        process.terminate()
        try: process.wait(30)
        except subprocess.TimeoutExpired: process.kill()
