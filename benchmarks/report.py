"""Tables into benchmarks/README.md, and the name of the machine they are from."""

import pathlib
import platform

README = pathlib.Path(__file__).resolve().parent / "README.md"


def write(script: str, report: str, path: pathlib.Path = README) -> None:
    """Replaces what a script wrote between its markers, and nothing else."""
    start, end = f"<!-- {script} writes from here -->", f"<!-- {script}, to here -->"
    before, rest = path.read_text().split(start)
    after = rest.split(end)[1]
    path.write_text(f"{before}{start}\n\n{report}\n\n{end}{after}")


def processor() -> str:
    """Name of the processor, as far as the system tells."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1] for line in lines if line.startswith("model name")]
        return names[0].strip()
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
