"""Pictures of a page by Chromium, to be looked at: phone and desktop, light and dark, and what is printed.

    python tests/report/look.py runs/reviews/report.html pictures/

A script and no test: the suite needs no browser.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
WIDTHS = {"phone": 360, "desktop": 1200}
HEIGHT = 4200


def main() -> None:
    if len(sys.argv) != 3 or not Path(sys.argv[1]).is_file():
        raise SystemExit(__doc__)
    page, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name, width in WIDTHS.items():
        for scheme, number in (("light", 1), ("dark", 0)):
            target = folder / f"{name}-{scheme}.png"
            look(
                page,
                f"--screenshot={target}",
                f"--window-size={width},{HEIGHT}",
                f"--blink-settings=preferredColorScheme={number}",
            )
    look(page, f"--print-to-pdf={folder / 'print.pdf'}", "--no-pdf-header-footer")
    print("\n".join(str(path) for path in sorted(folder.iterdir())))


def look(page: Path, *what: str) -> None:
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            ["chromium", *FLAGS, f"--user-data-dir={profile}", *what, page.as_uri()],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip


if __name__ == "__main__":
    main()
