"""Work on files that dies, or finds the disk full, at its n-th operation.

`Server` starts one process that imports everything and forks for every trial: Python starts once.
A trial does one of `work.py`'s jobs in the fork, where operations on files are counted: open for
writing, write, rename, unlink, mkdir, rmdir, fsync, truncate, chmod, and a whole file of a library
in Rust. At the chosen one the process ends, before it or after half of its bytes, or it fails.
"""

import _pyio
import builtins
import errno
import io
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

KILLS = ("half", "before")  # what cannot be done by half is not begun
HALVES = ("write", "safetensors", "tokenizer")  # what can
FAILURES = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
KILLED = 77


class Trial(NamedTuple):
    """What became of a trial."""

    ended: str  # done, killed, error: one of ours, or traceback
    told: str  # the error, its type first
    operations: list[str]  # all up to the end


class Faults:
    """Patches of this process: the operation numbered `at`, from 0, meets its fate."""

    def __init__(self, root: str, kind: str | None, at: int):
        self.root, self.kind, self.at = root, kind, at
        self.operations: list[str] = []
        self.paths: dict[int, str] = {}  # of open files

    def install(self) -> None:
        for name in ("rename", "replace", "unlink", "remove", "mkdir", "rmdir", "chmod"):
            setattr(os, name, self._counted(name, getattr(os, name)))
        self._open, self._write = os.open, os.write
        os.open, os.write = self.open, self.write
        os.fsync = self._counted_file("fsync", lambda file: None)  # the machine goes on: no need
        os.ftruncate = self._counted_file("ftruncate", os.ftruncate)
        opened = builtins.open

        def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            return (_pyio.open if set(mode) & set("wax+") else opened)(file, mode, *args, **kwargs)

        builtins.open = io.open = open_
        shutil._USE_CP_SENDFILE = False
        self._libraries()

    def _libraries(self) -> None:
        import safetensors.torch
        from safetensors import SafetensorError, serialize
        from transformers import PreTrainedTokenizerFast

        import sfumato.data.tokenizing

        sfumato.data.tokenizing.FileIO = _pyio.FileIO  # type: ignore[assignment]
        save = safetensors.torch.serialize_file

        def serialize_file(tensors: Any, path: Any, metadata: Any = None) -> None:
            beside = Path(path).with_name(".tmpR2d2c3")  # where it writes at first
            whole = lambda: save(tensors, path, metadata)  # noqa: E731
            self._file(
                "safetensors", beside, lambda: serialize(tensors, metadata), whole, SafetensorError
            )

        safetensors.torch.serialize_file = serialize_file
        backend = PreTrainedTokenizerFast
        save_tokenizer = backend._save_pretrained

        def save_pretrained(tokenizer: Any, save_directory: Any, **kwargs: Any) -> Any:
            text = lambda: tokenizer.backend_tokenizer.to_str().encode()  # noqa: E731
            whole = lambda: save_tokenizer(tokenizer, save_directory, **kwargs)  # noqa: E731
            return self._file(
                "tokenizer", Path(save_directory) / "tokenizer.json", text, whole, Exception
            )

        backend._save_pretrained = save_pretrained

    def _file(
        self,
        name: str,
        path: Path,
        data: Callable[[], bytes],
        whole: Callable[[], Any],
        error: type,
    ) -> Any:
        def half() -> None:
            content = bytes(data())
            descriptor = self._open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            self._write(descriptor, content[: len(content) // 2])
            os.close(descriptor)

        try:
            self._meet(name, str(path), half)
        except OSError as failure:
            half()
            words = f"I/O error: {failure.strerror} (os error {failure.errno})"
            raise error(words) from None
        return whole()

    def _meet(self, name: str, path: str, half: Callable[[], Any] | None = None) -> None:
        number = len(self.operations)
        self.operations.append(f"{name} {path.removeprefix(self.root)}")
        if number != self.at or self.kind is None:
            return
        if self.kind in FAILURES:
            code = FAILURES[self.kind]
            raise OSError(code, os.strerror(code), path)
        if self.kind == "half" and half is not None:
            half()
        self.tell("killed")
        os._exit(KILLED)

    def tell(self, ended: str, told: str = "") -> None:
        descriptor = self._open(f"{self.root}.trial", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._write(descriptor, json.dumps([ended, told, self.operations]).encode())

    def _counted(self, name: str, operation: Callable) -> Callable:
        def counted(path: Any, *args: Any, **kwargs: Any) -> Any:
            self._meet(name, os.fspath(path))
            return operation(path, *args, **kwargs)

        return counted

    def _counted_file(self, name: str, operation: Callable) -> Callable:
        def counted(file: int, *args: Any) -> Any:
            if file in self.paths:
                self._meet(name, self.paths[file])
            return operation(file, *args)

        return counted

    def open(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        name = os.fspath(path)
        ours = isinstance(name, str) and os.path.abspath(name).startswith(self.root)
        if ours and flags & WRITES:
            self._meet("open", name)
        descriptor = self._open(path, flags, *args, **kwargs)
        self.paths.pop(descriptor, None)
        if ours:
            self.paths[descriptor] = name
        return descriptor

    def write(self, file: int, data: Any) -> int:
        if file in self.paths:
            content = bytes(data)
            half = lambda: self._write(file, content[: len(content) // 2])  # noqa: E731
            self._meet("write", self.paths[file], half)
        return self._write(file, data)


class Server:
    """The process that forks; `trial` is what tests call."""

    def __init__(self):
        here = Path(__file__).parent
        path = f"{here}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, **quiet, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def trial(self, job: str, root: Path, kind: str | None = None, at: int = -1) -> Trial:
        """Do a job in `root`; count all its operations if there is no kind."""
        pipe, answers = self.process.stdin, self.process.stdout
        assert pipe is not None
        assert answers is not None
        pipe.write(json.dumps([job, str(root), kind, at]) + "\n")
        pipe.flush()
        assert answers.readline() == "\n", "the server died"
        return Trial(*json.loads(Path(f"{root}.trial").read_text()))

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def _serve() -> None:
    import work

    work.new_lm()

    for line in sys.stdin:
        job, root, kind, at = json.loads(line)
        child = os.fork()
        if not child:
            _try(work.JOBS[job], root, kind, at)
        os.waitpid(child, 0)
        print(flush=True)


def _try(job: Callable[[Path], Any], root: str, kind: str | None, at: int) -> None:
    from sfumato.errors import SfumatoError

    os.dup2(2, 1)
    Path(f"{root}.trial").unlink(missing_ok=True)
    faults = Faults(root, kind, at)
    faults.install()
    try:
        faults.tell("done", str(job(Path(root))))
    except SfumatoError as error:
        faults.tell("error", f"{type(error).__name__}: {error}")
    except BaseException:
        faults.tell("traceback", traceback.format_exc())
    os._exit(0)


if __name__ == "__main__":
    _serve()
