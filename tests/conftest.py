"""What all tests share."""

import os

# Tests compile much and run little: compiling without optimization takes a third of
# the time. `.ci/run` also runs train.py as users do.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import collections
import logging
import pathlib
import shlex
import sys

import jax
import pytest


@pytest.fixture
def x64():
    """Runs a test in float64, as exactness is tested."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def logger():
    """Starts each test with the library's logger untouched, whatever ran before."""
    library = logging.getLogger("jaxsnn")
    library.handlers, library.propagate = [], True
    library.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True, scope="module")
def programs():
    """Lets go of compiled programs, which would fill the memory with one another."""
    yield
    jax.clear_caches()


# The table of faults; `pytest --fault-table=docs/faults.md` writes it


@pytest.fixture
def tried(record_property):
    """Records a kind of fault, how often it was tried, what came of it, and of what."""

    def record(kind, tries, result, of=""):
        record_property("fault", (kind, tries, result, of))

    return record


def pytest_addoption(parser):
    parser.addoption(
        "--fault-table", metavar="FILE", help="try all faults, write the table in FILE"
    )


def pytest_configure(config):
    path = config.getoption("--fault-table")
    if path:
        config.option.markexpr = ""  # Of the slow tests as well.
        if not hasattr(config, "workerinput"):
            config.pluginmanager.register(FaultTable(pathlib.Path(path)))


def pytest_collection_modifyitems(config, items):
    if config.getoption("--fault-table"):
        items[:] = [i for i in items if "tried" in getattr(i, "fixturenames", ())]


class FaultTable:
    """Gathers the rows of tests that passed, and replaces a part of a document."""

    BEGIN, END = "<!-- the tests write from here -->", "<!-- to here -->"

    def __init__(self, path):
        self.path, self.rows = path, {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            self.rows[report.location] = [
                value for name, value in report.user_properties if name == "fault"
            ]

    def pytest_sessionfinish(self, exitstatus):
        if exitstatus:
            return
        found = collections.defaultdict(collections.Counter)
        for _, rows in sorted(self.rows.items()):
            for kind, tries, result, of in rows:
                found[kind, result][of] += tries
        total = sum(tries.total() for tries in found.values())
        command = shlex.join(["pytest", *sys.argv[1:]])
        lines = [f"{total} faults, by `{command}`:", ""]
        lines += ["| fault | tries | result |", "|---|---|---|"]
        for (kind, result), tries in found.items():
            parts = ", ".join(f"{of} {n}" for of, n in sorted(tries.items()) if of)
            parts = f" ({parts})" if parts else ""
            lines.append(f"| {kind} | {tries.total()}{parts} | {result} |")
        head, _, rest = self.path.read_text().partition(self.BEGIN)
        _, _, tail = rest.partition(self.END)
        parts = [head + self.BEGIN, *lines, self.END + tail]
        self.path.write_text("\n".join(parts))
