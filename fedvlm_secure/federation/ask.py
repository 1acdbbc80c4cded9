"""Asking a finished run: one hospital's model, base and adapter, about one picture."""

from pathlib import Path

from PIL import Image

from fedvlm_secure import models
from fedvlm_secure.adapters import attach, load_peft
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.rundir import RunDirectory
from fedvlm_secure.federation.settings import Settings


def ask(run: Path, site: str, image: Path, question: str) -> str:
    """The answer of ``site``'s trained model to ``question`` about the picture in ``image``.

    Raises:
        MisuseError: the run, the site or the picture is not there.
    """
    folder = RunDirectory(run)
    settings = Settings.from_toml(folder.settings)
    if not folder.site(site).path.is_dir():
        sites = sorted(path.name for path in (run / "sites").glob("*"))
        raise MisuseError(f"{run} has no site {site!r}; it has {', '.join(sites)}")
    saved = load_peft(folder.site(site).path / "adapter")
    try:
        picture = Image.open(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what PIL raises
        raise MisuseError(f"{image} is not a picture that can be read: {error}") from None
    loaded = models.load(settings.model, settings.device, settings.dtype)
    adapter = attach(loaded.model, saved.settings)
    adapter.load(saved.state)
    answer: str = models.answer(adapter.peft_model, loaded.processor, picture, question)
    return answer
