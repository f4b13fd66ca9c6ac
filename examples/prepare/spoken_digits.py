"""Free Spoken Digit Dataset: the ten digits, said by several speakers, as digits.csv with path, text and speaker.

Jackson et al., https://github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0: WAV files of 8 kHz named
DIGIT_SPEAKER_TAKE.wav. No package brings it: `python examples/data.py spoken-digits --from DIR`, where DIR holds its
folder `recordings`. One table holds all: the task keeps speakers apart when it splits off validation and test.
"""

import csv
import shutil
from pathlib import Path

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def make(folder: Path, source: Path | None) -> None:
    """digits.csv and recordings/."""
    clips = sorted((source / "recordings").glob("[0-9]_*_*.wav")) if source else []
    if not clips:
        raise SystemExit("name the folder of the data set: python examples/data.py spoken-digits --from DIR")
    (folder / "recordings").mkdir()
    with (folder / "digits.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("path", "text", "speaker"))
        for clip in clips:
            digit, speaker, _ = clip.stem.split("_")
            shutil.copyfile(clip, folder / "recordings" / clip.name)
            table.writerow((f"recordings/{clip.name}", WORDS[int(digit)], speaker))
    print(f"{len(clips)} clips of {len({clip.stem.split('_')[1] for clip in clips})} speakers")
