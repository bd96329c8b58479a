"""What a run does on a disk that is full, and on one that cannot be written.

    unshare --user --map-root-user --mount python tests/small_disk.py DIRECTORY CACHE

The disk is in memory and seen by this process alone. Prints a JSON list of what each
step led to; the steps build on each other.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import faulty_training
from faulty_training import Run


def main(directory: Path, cache: Path) -> None:
    """Runs all steps."""
    disk, logs = directory / "disk", directory / "logs"
    disk.mkdir()
    logs.mkdir()
    _mount("-t", "tmpfs", "-o", "size=2m", "none", str(disk))
    faulty_training.start_server(cache)
    result, filler = [], disk / "filler"

    def step(name: str, *arguments: str) -> None:
        run = Run(disk / "run", "stand-in", *arguments, logs=logs)
        code = run.wait()
        checkpoints = sorted(p.name for p in (disk / "run" / "checkpoints").iterdir())
        result.append([name, code, run.output, checkpoints])

    def fill(free: int) -> None:
        """Leaves so many bytes."""
        filler.write_bytes(b"")
        with filler.open("ab", buffering=0) as file:
            size = 2 * 2**20 - _used(disk) - free
            file.write(bytes(max(size, 0)))

    fill(free=350_000)
    step("full during a save")
    fill(free=0)
    step("full at the start")
    filler.unlink()
    _mount("-o", "remount,ro", str(disk))
    step("read-only")
    step("read-only, evaluation", "--mode=eval")
    _mount("-o", "remount,rw", str(disk))
    step("space again")
    # What is on the disk goes when this process does.
    subprocess.run(["cp", "-r", disk / "run", directory / "run"], check=True)
    sys.stdout.write(json.dumps(result))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _used(disk: Path) -> int:
    # In pages, as the disk counts.
    return sum(
        -(-path.stat().st_size // 4096) * 4096
        for path in disk.rglob("*")
        if path.is_file()
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
