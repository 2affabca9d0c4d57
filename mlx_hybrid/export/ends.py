"""How other libraries learn of the token that ends answers, where a base's own settings do not name it."""

from dataclasses import dataclass
from pathlib import Path

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.files import read_json, write_json
from mlx_hybrid.models.answer_end import named_ends, unnamed_end

GENERATION = "generation_config.json"  # transformers, vLLM and mlx-lm read ends from it before config.json


@dataclass(frozen=True)
class End:
    """A token that ends answers beyond those that are named; `ids` are all of them."""

    text: str
    ids: list[int]

    @property
    def told(self) -> str:
        """What a program without these settings has to be told, as lines of a README."""
        return (
            f"\nAnswers end with `{self.text}`, which the base's own settings do not name as an end. Stop there: in "
            f"transformers `model.generation_config.eos_token_id = {self.ids}`, in vLLM `stop_token_ids={self.ids}`, "
            f"in mlx-lm `--extra-eos-token '{self.text}'`.\n"
        )


def end_of_answers(folder: Path) -> End | None:
    """The unnamed end of the model in `folder`; None where there is none, or no tokenizer to see it with."""
    from mlx_hybrid.models.base import read_tokenizer

    try:
        tokenizer = read_tokenizer(folder, str(folder))
    except ConfigError:
        return None
    text = unnamed_end(tokenizer, folder)
    if not text:
        return None
    return End(text, [*named_ends(tokenizer, folder), tokenizer.convert_tokens_to_ids(text)])


def name_end(folder: Path, end: End) -> None:
    """Name all ends in the model's generation settings, which are made where it has none."""
    path = folder / GENERATION
    if path.is_file():
        tree = read_json(path)
    else:
        config = read_json(folder / "config.json")
        tree = {key: config[key] for key in ("bos_token_id", "pad_token_id") if key in config}
    write_json(path, tree | {"eos_token_id": end.ids})
