"""A₀ from public rows: the directions in which a layer's input varies, each made equally loud.

A random A₀ passes on what is loud in a layer's input and little else; gradient descent finds the rest in time, private
gradient descent does not, since noise drowns what is slow to be learnt. Principal directions of the input as A₀ are EVA
(arXiv 2410.07170); here they are whitened too. They must come from rows that are no hospital's, for nothing protects
them: a model's folder brings them along in a file of safetensors.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedvlm_secure.errors import MisuseError

BASES_FILE = "input_bases.safetensors"
# Directions much fainter than the second loudest (the loudest is the mean) are not lifted to its level: they are noise.
_RIDGE = 1e-3
_IGNORED = -100


def whitened(moment: torch.Tensor, rank: int) -> torch.Tensor:
    """The first ``rank`` principal directions of a second moment, loudest first, scaled to mean square one or less.

    Args:
        moment: symmetric, positive semi-definite [in, in].

    Returns:
        float32 [min(rank, in), in], rows u/√(λ + 0.001·λ₂); a row's sign makes its largest entry positive.
    """
    values, vectors = torch.linalg.eigh(moment.double())
    values, rows = values.flip(0).clamp(min=0), vectors.flip(1).T[:rank]
    loud = values[min(1, len(values) - 1)]
    peaks = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    scales = (values[:rank] + _RIDGE * loud).rsqrt()
    scales[scales.isinf()] = 0.0  # an input that is always zero
    return (rows * (peaks.sign() * scales[:, None])).float()


@torch.no_grad()
def public_bases(
    model: torch.nn.Module, modules: Sequence[str], batches: Iterable[Mapping[str, torch.Tensor]], rank: int
) -> dict[str, torch.Tensor]:
    """:func:`whitened` second moments of what linear modules are given where tokens of answers are said.

    Args:
        modules: full names of modules of ``model``.
        batches: what the model's forward takes, and ``labels`` [B, T]: −100 except on answer tokens.

    Returns:
        float32 [rank or in, in] by module name.

    Raises:
        MisuseError: no row has an answer token, or the model reads the question in an encoder, whose layers are given
            no answer.
    """
    sums: dict[str, torch.Tensor] = {}
    count = 0
    for batch in batches:
        if "decoder_input_ids" in batch:
            raise MisuseError('a model with an encoder and a decoder has no public bases; use adapter.init = "random"')
        inputs = dict(batch)
        labels = inputs.pop("labels")
        said = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=_IGNORED) != _IGNORED
        with _watching(model, modules, said, sums):
            model(**inputs)
        count += int(said.sum())
    if not count:
        raise MisuseError("public bases need at least one row with an answer")
    return {name: whitened(sums[name] / count, rank) for name in modules}


@contextmanager
def _watching(
    model: torch.nn.Module, modules: Sequence[str], said: torch.Tensor, sums: dict[str, torch.Tensor]
) -> Iterator[None]:
    """Inside the block, add up x·xᵀ over what each module is given where ``said``, bool [B, T]."""

    def add(name: str, given: torch.Tensor) -> None:
        chosen = given[said.to(given.device)].double().cpu()
        sums[name] = sums.get(name, 0) + chosen.T @ chosen

    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, given, name=name: add(name, given[0]))
        for name in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def save_bases(folder: Path, bases: Mapping[str, torch.Tensor]) -> None:
    """Write :data:`BASES_FILE` into a model's folder, as float16."""
    save_file({name: basis.half().contiguous() for name, basis in sorted(bases.items())}, folder / BASES_FILE)


def load_bases(folder: Path) -> dict[str, torch.Tensor]:
    """Read :data:`BASES_FILE` from a model's folder: float32 [rows, in] by module name; empty where there is none.

    Raises:
        MisuseError: the file is not safetensors, or a tensor is not a finite matrix.
    """
    path = folder / BASES_FILE
    if not path.exists():
        return {}
    try:
        found = {name: tensor.float() for name, tensor in sorted(load_file(path).items())}
    except (OSError, SafetensorError) as error:
        raise MisuseError(f"{path} cannot be read: {error}") from error
    for name, tensor in found.items():
        if tensor.ndim != 2 or not torch.isfinite(tensor).all():
            raise MisuseError(f"{path}: {name} is not a matrix of finite numbers")
    return found
