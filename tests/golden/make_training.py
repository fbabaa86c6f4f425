"""Write the golden losses of training anew, and print old against new: python make_training.py"""

import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from small_runs import golden_losses  # noqa: E402

if __name__ == "__main__":
    file = HERE / "training.json"
    with tempfile.TemporaryDirectory() as folder:
        new = golden_losses(Path(folder))
    old = json.loads(file.read_text()) if file.exists() else {}
    for name, losses in new.items():
        for step, loss in enumerate(losses):
            print(name, step + 1, old.get(name, [None] * len(losses))[step], loss)
    file.write_text(json.dumps(new, indent=1) + "\n")
