"""Run the README's Python and put what it prints below it: python docs/readme_output.py

To be run whenever the shipped model, or how it writes, has changed; a test compares the two. It is
computed in float32 on every processor: bfloat16 sums differ from one to the next, and so do texts.
"""

import contextlib
import io
import os
import re
import tempfile
from pathlib import Path
from unittest import mock

import torch

README = Path(__file__).parents[1] / "README.md"
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
SHOWN = re.compile(r"```text\n(.*?)```", re.DOTALL)


def output(code: str, folder: Path) -> str:
    """What the code prints when it is run in a folder."""
    printed, here = io.StringIO(), Path.cwd()
    os.chdir(folder)
    try:
        plain = mock.patch("sfumato.devices.fast_dtype", return_value=torch.float32)
        with contextlib.redirect_stdout(printed), plain:
            exec(compile(code, README.name, "exec"), {"__name__": "readme"})
    finally:
        os.chdir(here)
    return printed.getvalue()


def main() -> None:
    text = README.read_text(encoding="utf-8")
    (code,) = CODE.findall(text)
    with tempfile.TemporaryDirectory() as folder:
        printed = output(code, Path(folder))
    README.write_text(SHOWN.sub(lambda _: f"```text\n{printed}```", text), encoding="utf-8")


if __name__ == "__main__":
    main()
