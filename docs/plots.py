"""Draws the pictures of plots.md from a run of the default config.

    python train.py --config=configs/yinyang.py
    python docs/plots.py [--workdir=runs/yinyang] [--browser=chromium]

The last one is a photograph of the run's report, which a browser takes.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
sys.path.insert(0, str(ROOT))  # configs/ is not part of the package.

from configs import yinyang  # noqa: E402
from jaxsnn import datasets, plot, training  # noqa: E402
from jaxsnn.training import figures, loop, writers  # noqa: E402

SHOWN = 4  # Which of the test examples.


def main() -> None:
    """Draws all of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=Path, default=ROOT / "runs" / "yinyang")
    parser.add_argument("--browser", default="chromium", help="empty: no photograph")
    options = parser.parse_args()
    config, workdir = yinyang.get_config(), options.workdir.absolute()
    _, found = loop.restored(config, workdir)
    pictures = figures.Pictures(config, found.state)
    test = datasets.load("yin_yang", "test")
    activity = pictures.activity(test["features"].astype(np.float32)[:100])
    features, inside = figures.plane()
    decided = pictures.decide(features)
    readings = decided.readings.reshape(*inside.shape, -1)
    form = {"classes": pictures.classes}
    label = int(test["label"][SHOWN])
    drawn = {
        "raster": plot.raster(activity, SHOWN, label=label, **form),
        "voltages": plot.voltages(activity["output"], sample=SHOWN, **form),
        "decisions": plot.decision_map(
            decided.labels.reshape(inside.shape), inside=inside, **form
        ),
        "first_spikes": plot.first_spike_maps(readings, inside=inside, **form),
        "curves": plot.training_curves(writers.read_metrics(workdir)),
    }
    for name, figure in drawn.items():
        (IMAGES / f"plots_{name}.png").write_bytes(plot.png(figure, dpi=110))
    page = training.write_report(config, workdir)
    if options.browser:
        with tempfile.TemporaryDirectory() as profile:
            arguments = ["--headless", "--no-sandbox", "--hide-scrollbars"]
            arguments += [f"--user-data-dir={profile}", "--window-size=1280,1500"]
            target = f"--screenshot={IMAGES / 'plots_report.png'}"
            command = [options.browser, *arguments, target, page.as_uri()]
            subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main()
