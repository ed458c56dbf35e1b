"Three SIGKILLs at random moments, of a method with crops, queues of chance and several views; `kills.py` does it for all methods, as often as one likes."
import subprocess
import sys
from pathlib import Path


def test_three_kills(tmp_path):
    done = subprocess.run([sys.executable, Path(__file__).parent/"kills.py", "--kills", "3", "--methods", "toco"], capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stdout+done.stderr
    assert "kills 3" in done.stdout
