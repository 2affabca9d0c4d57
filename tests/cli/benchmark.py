"""A made-up copy of SIB-200's layout: no sentence of the benchmark."""

from pathlib import Path

TOPICS = ("sports", "health", "travel", "politics", "science/technology", "entertainment", "geography")
SENTENCES = {
    "eng_Latn": "Number {} is a made-up sentence about {}.",
    "deu_Latn": "Nummer {} ist ein Satz über {}.",
}


def write_sib200(folder: Path, count: int = 14) -> Path:
    for language, text in SENTENCES.items():
        for split, start in (("train", 0), ("dev", 100), ("test", 200)):
            rows = [f"{start + n}\t{TOPICS[n % 7]}\t{text.format(n, TOPICS[n % 7])}" for n in range(count)]
            path = folder / "sib200" / language / f"{split}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(["index_id\tcategory\ttext", *rows]) + "\n", encoding="utf-8")
    return folder
