"""Any averaging strategy of Flower's over secure sums: it sees one reply, which is everybody's mean."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedMedian,
    FedTrimmedAvg,
    FedXgbBagging,
    FedXgbCyclic,
    Krum,
    MultiKrum,
    QFedAvg,
    Result,
    Strategy,
)

from fedvlm_secure.engines.flower.client import EXAMPLES
from fedvlm_secure.engines.flower.server import SecureAggregator
from fedvlm_secure.errors import MisuseError

# They look at single updates, or count on a server that does.
_ONE_BY_ONE = (
    Bulyan,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedMedian,
    FedTrimmedAvg,
    FedXgbBagging,
    FedXgbCyclic,
    Krum,
    MultiKrum,
    QFedAvg,
)


class SecureStrategy:
    """A Flower strategy whose server sees sums only: ``SecureStrategy(FedAvg(), folder).start(grid, arrays)``.

    The strategy configures messages and takes the mean as it would take any reply, so server-side optimisers such as
    FedAdam work too. Metrics named in ``metrics`` are averaged inside the sum; without any, nodes are not asked to
    evaluate.

    Args:
        strategy: one that averages. One that compares single updates cannot work on a sum, and is refused.
        folder, **options: as for :class:`SecureAggregator`.

    Raises:
        MisuseError: the strategy looks at single updates.
    """

    def __init__(self, strategy: Strategy, folder: Path | str, **options: Any) -> None:
        if isinstance(strategy, _ONE_BY_ONE):
            raise MisuseError(f"{type(strategy).__name__} needs single updates, and here nobody sees one; use FedAvg")
        self._strategy, self._folder, self._options = strategy, folder, options

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """As :meth:`flwr.serverapp.strategy.Strategy.start`.

        Raises:
            ProtocolError: a round failed as often as the settings allow.
        """
        secure = _SecureGrid(grid, SecureAggregator(grid, self._folder, **self._options), self._strategy)
        return self._strategy.start(
            secure, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
        )


class _SecureGrid(Grid):
    """A grid on which whoever sends to many gets one reply back: their mean."""

    def __init__(self, grid: Grid, aggregator: SecureAggregator, strategy: Strategy) -> None:
        self._grid, self._aggregator = grid, aggregator
        self._weighted_by = getattr(strategy, "weighted_by_key", EXAMPLES)
        self._key = getattr(strategy, "arrayrecord_key", "arrays")

    @property
    def run(self) -> Any:
        """See :class:`Grid`."""
        return self._grid.run

    def set_run(self, run: Any) -> None:
        """See :class:`Grid`."""
        self._grid.set_run(run)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """See :class:`Grid`."""
        return self._grid.create_message(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Refused: its replies would be single nodes'."""
        raise MisuseError("under SecureStrategy nodes are asked by send_and_receive only")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See :meth:`push_messages`."""
        raise MisuseError("under SecureStrategy nodes are asked by send_and_receive only")

    def get_node_ids(self) -> list[int]:
        """Those that have shown a key on the roster."""
        return sorted(self._aggregator.hospitals())

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """One reply for all, as if from the first node."""
        sent = list(messages)
        if not sent:
            return []
        contents = {message.metadata.dst_node_id: message.content for message in sent}
        kind = sent[0].metadata.message_type
        trains = kind.split(".")[0] == MessageType.TRAIN
        if not trains and not self._aggregator.metrics:
            return []
        arrays = next(record for record in sent[0].content.values() if isinstance(record, ArrayRecord))
        total = self._aggregator.aggregate(arrays, contents, kind, 3600.0 if timeout is None else timeout)
        content = RecordDict({"metrics": MetricRecord({self._weighted_by: total.weight, **total.metrics})})
        if trains:
            content[self._key] = total.arrays
        return [Message(content, reply_to=sent[0])]
