"""Who shares masks and seeds with whom where the cohort is large: a random ring, each client linked to its k nearest.

This is the graph of SecAgg+ (Bell et al. 2020, https://eprint.iacr.org/2020/704) against an honest-but-curious server.
Its guarantees hold for corruptions and dropouts that do not depend on the order of the ring; whoever can try seeds
until the order suits it breaks them, so against a malicious server the graph is complete.

Let n clients sit in random order, c of them corrupt and at most d dropped by the end of the round. The k clients around
any one place are then a uniformly random k-subset of all n, so that how many of them are corrupt, dropped or either is
hypergeometric: HG(n, c, k), HG(n, d, k) or HG(n, c + d, k). A union over places bounds everything that may go wrong:

- *The honest survivors fall apart.* Only their sum over each connected part stays hidden. Links reach k/2 places, so to
  part the ring two disjoint runs of k/2 neighbouring places must be corrupt or dropped, with a survivor between them on
  either side. The first run starts at one of n places, the second at one of n - k - 1, and every pair is counted twice:
  n (n - k - 1) / 2 pairs, each bad with probability P[HG(n, c + d, k) = k].
- *The corrupt recover a seed.* They hold t shares of some client's with probability at most n P[HG(n, c, k) >= t].
- *The server cannot recover a seed*, since fewer than t of some client's neighbours remain, more than k - t have
  dropped: probability at most n P[HG(n, d, k) > k - t].

The first two may each happen with probability 2^-41, which makes 2^-40 for security; the third with 2^-20.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import exp, lgamma
from types import MappingProxyType

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.secagg.session import ClientId

SECURITY_LOSS = 2.0**-40
FAILURE = 2.0**-20

# Up to 10^7 clients the log-gammas are wrong by less than 1e-6 in sum. Every tail is enlarged by as much, so that
# rounding may cost a neighbour but never security.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Sparse:
    """The parameters of a sparse graph.

    Attributes:
        degree: k, even: each client's number of neighbours.
        threshold: t, how many of the k neighbours' shares recover a seed.
    """

    degree: int
    threshold: int


@lru_cache(maxsize=256)
def sparse(clients: int, max_corrupt: int, max_dropped: int) -> Sparse | None:
    """The sparsest graph that is safe, with its least safe threshold.

    Args:
        clients: n, the cohort's size.
        max_corrupt: c, how many clients may collude with the server.
        max_dropped: d, how many clients may be silent by the end of the round. With more than that the server must not
            learn the sum: security counts on the rest being there.

    Returns:
        The least even degree below n - 1 at which all three bounds above hold; None where only the complete graph will
        do, and for counts that make no sense, because clients ask this about what a server proposes.
    """
    if max_corrupt < 0 or max_dropped < 0:
        return None
    threshold = 2  # more neighbours are never fewer corrupt ones: the least threshold only rises with the degree
    for degree in range(2, clients - 1, 2):
        gaps = clients * (clients - degree - 1) / 2
        if gaps * _tail(clients, max_corrupt + max_dropped, degree, degree) > SECURITY_LOSS / 2:
            continue
        while clients * _tail(clients, max_corrupt, degree, threshold) > SECURITY_LOSS / 2:
            threshold += 1
        if clients * _tail(clients, max_dropped, degree, degree - threshold + 1) <= FAILURE:
            return Sparse(degree, threshold)
    return None


@lru_cache(maxsize=4)
def neighbours(cohort: tuple[ClientId, ...], degree: int, seed: bytes) -> Mapping[ClientId, tuple[ClientId, ...]]:
    """Every client's neighbours, sorted by name, in the ring whose order follows from ``seed``.

    Clients sit in the order of ``digest("graph-order", seed, name)``; each is linked to ``degree / 2`` on either side.

    Raises:
        MisuseError: no ring of that degree has as many clients.
    """
    if degree % 2 or not 2 <= degree < len(cohort):
        raise MisuseError(f"degree is {degree}; for {len(cohort)} clients choose an even number from 2, below that")
    ring = sorted(cohort, key=lambda name: digest("graph-order", seed, name))
    half = degree // 2
    around = ring[-half:] + ring + ring[:half]
    return MappingProxyType(  # every caller is given the same one
        {
            name: tuple(sorted(around[place : place + half] + around[place + half + 1 : place + degree + 1]))
            for place, name in enumerate(ring)
        }
    )


def _tail(population: int, marked: int, draws: int, least: int) -> float:
    """An upper bound on P[X >= least], X ~ HG(population, marked, draws): how many of the draws are marked.

    Tight above the mean, and simply 1 up to it, where no bound of ours could hold. Above the mean the terms fall: we
    add from the largest until the rest no longer counts.
    """
    if least * population <= draws * marked:
        return 1.0
    if least > min(marked, draws):
        return 0.0
    ways = _log_binomial(marked, least) + _log_binomial(population - marked, draws - least)
    term = exp(ways - _log_binomial(population, draws))
    total, hits = 0.0, least
    while term > total * 1e-17:
        total += term
        term *= (marked - hits) * (draws - hits) / ((hits + 1) * (population - marked - draws + hits + 1))
        hits += 1
    return total * (1 + _ROUNDING)


def _log_binomial(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
