"""JupyterLab in a real browser: the fixture `lab` opens notebooks, `run_all` runs them.

Only processes that it started are ended."""
import json,os,shutil,socket,subprocess,sys,time
from pathlib import Path
from urllib.request import urlopen

import pytest

TOKEN = "test"

def run_all(page):
    "Run all cells of the notebook that `page` shows, as its menu would"
    page.evaluate("() => jupyterapp.commands.execute('notebook:run-all-cells')")

def complaints(page):
    "Return what the notebook's cells wrote to stderr, and their errors"
    return page.locator('[data-mime-type$="stderr"], [data-mime-type$="jupyter.error"]').all_inner_texts()

def _free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

def _await(url, server, log, seconds=180):
    "Wait until `url` answers"
    end = time.monotonic() + seconds
    while True:
        try: return urlopen(url, timeout=5).close()
        except OSError:
            assert server.poll() is None and time.monotonic() < end, \
                f"JupyterLab does not answer:\n{log.read_text()[-2000:]}"
            time.sleep(.2)

class Lab:
    "A JupyterLab server on the folder `work` and a browser to look at it"
    def __init__(self, url, work, browser): self.url,self.work,self.browser = url,work,browser

    def open(self, notebook):
        "Open a copy of the file `notebook` and wait for its kernel; return the page"
        name = Path(shutil.copy(notebook, self.work)).name
        page = self.browser.new_page(viewport={"width": 1300, "height": 1000})
        page.set_default_timeout(180_000)
        page.goto(f"{self.url}/lab/tree/{name}?token={TOKEN}&reset")
        page.wait_for_function(
            "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")
        return page

@pytest.fixture
def browser():
    "The system's Chromium, driven by playwright; its absence skips the test"
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium: pytest.skip("no Chromium on PATH: apt-get install chromium")
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium,
                                    args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        yield browser
        browser.close()

@pytest.fixture
def lab(browser, tmp_path):
    "A `Lab` on an empty folder, with settings of its own, so that the user's stay as they are"
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    work,config,log = tmp_path/"work",tmp_path/"config",tmp_path/"lab.log"
    work.mkdir()
    (config/"labconfig").mkdir(parents=True)  # the announcement's pop-up would take the focus
    (config/"labconfig"/"page_config.json").write_text(
        json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}))
    env = os.environ | {"JUPYTER_CONFIG_DIR": str(config), "JUPYTER_RUNTIME_DIR": str(tmp_path/"run"),
                        "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path/"ws"),
                        "JUPYTERLAB_SETTINGS_DIR": str(tmp_path/"settings"), "JUPYTER_PREFER_ENV_PATH": "1"}
    port = _free_port()
    with log.open("w") as out:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
                                   f"--port={port}",
            "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}", "--LabApp.expose_app_in_browser=True",
                                   f"--ServerApp.root_dir={work}"],
                                  env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        url = f"http://127.0.0.1:{port}"
        _await(f"{url}/api", server, log)
        yield Lab(url, work, browser)
    finally:
        server.terminate()  # it ends its kernels itself
        try: server.wait(30)
        except subprocess.TimeoutExpired: server.kill()
