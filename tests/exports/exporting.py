"""Exports of adapters on tiny models, made once for all tests that only read them."""

import shutil
from functools import cache

from hf_bases import folder_of, root, trained

from mlx_hybrid.exports.adapter import open_source
from mlx_hybrid.exports.export import Options, export
from mlx_hybrid.exports.weights import ModelWeights


def made(folder, method, architecture="llama", *, packed=False, to="peft", **options):
    """An export with its report, its source and the weights it is for."""
    model = folder_of(architecture, packed=packed)
    adapter = trained(method, architecture, packed=packed)
    report = export(str(adapter), to, folder / "out", Options(model=model, **options))
    source = open_source(str(adapter), model=model)
    beside = folder / "out" / "base"
    return report, source, ModelWeights(beside) if beside.is_dir() else source.base


@cache
def made_once(method, architecture, packed, to):
    folder = root() / "-".join(("exported", method, architecture, str(packed), to))
    return folder, *made(folder, method, architecture, packed=packed, to=to)


def exported(tmp_path, method, architecture="llama", *, packed=False, to="peft"):
    """The same, made once for all tests, and a copy of its files to read and to change."""
    folder, *found = made_once(method, architecture, packed, to)
    shutil.copytree(folder / "out", tmp_path / "out", symlinks=True)
    return found
