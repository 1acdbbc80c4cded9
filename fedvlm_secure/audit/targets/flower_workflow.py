"""A whole round by flwr's own workflow, with the mods of one attempt behind its grid; imported only where flwr is."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.common import Parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key
from flwr.compat.common import recorddict_compat as compat
from flwr.server import LegacyContext, SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import WorkflowState

from fedvlm_secure.audit.target import INPUT, BrokenRoundError, Mean, RefusedError
from fedvlm_secure.audit.targets.flower import RUN, STAGES, STEP_OF

if TYPE_CHECKING:
    from fedvlm_secure.audit.targets.flower_attempt import FlowerAttempt

APP_FAILED = 0


class Grid:
    """What the workflow sends its messages through: a mod that raises is an error in the reply, as in the field."""

    def __init__(self, attempt: "FlowerAttempt", silent: Mapping[str, str]) -> None:
        self.attempt, self.silent = attempt, silent
        self.faults: list[RefusedError] = []

    def send_and_receive(self, messages: Iterable[Message], timeout: float | None = None) -> list[Message]:
        """The replies of all that are not silent yet."""
        replies = []
        for message in messages:
            name = self.attempt.names[message.metadata.dst_node_id]
            stage = str(message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE])
            leaves = self.silent.get(name)
            if leaves is not None and STAGES.index(stage) >= STAGES.index(leaves):
                continue
            try:
                replies.append(self.attempt.deliver(name, self._as_shown(name, stage, message)))
            except RefusedError as error:
                self.faults.append(error)
                replies.append(Message(Error(APP_FAILED, str(error)), reply_to=message))
        return replies

    def _as_shown(self, name: str, stage: str, message: Message) -> Message:
        """The request with the model that a lying server shows this client."""
        if not self.attempt.proposal.shown or STEP_OF[stage] != INPUT:
            return message
        return self.attempt.message(name, INPUT, dict(message.content.config_records[RECORD_KEY_CONFIGS]))


class OnlyTheMean(FedAvg):
    """A strategy that takes what the workflow gives each client's result: the mean."""

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        """The first result's parameters."""
        return results[0][1].parameters, {}


def workflow_round(attempt: "FlowerAttempt", silent: Mapping[str, str]) -> Mean:
    """The mean that the workflow hands to its strategy; raises :class:`BrokenRoundError`."""
    grid, context, state = Grid(attempt, silent), _context(attempt), WorkflowState()
    workflow: Any = attempt.workflow
    stages = (
        workflow.setup_stage,
        workflow.share_keys_stage,
        workflow.collect_masked_vectors_stage,
        workflow.unmask_stage,
    )
    survivors: tuple[str, ...] = ()
    for stage, run in zip(STAGES, stages, strict=True):
        try:
            goes_on = run(grid, context, state)
        except Exception as error:
            raise BrokenRoundError(f"its server raises {type(error).__name__} in {stage}: {error}") from error
        if not goes_on:
            faults = f"; {len(grid.faults)} clients failed, the first: {grid.faults[0].detail}" if grid.faults else ""
            raise BrokenRoundError(f"its workflow halts in {stage}{faults}")
        if stage == "collect_masked_vectors":
            survivors = tuple(sorted(attempt.names[node] for node in state.active_node_ids))
    parameters = compat.arrayrecord_to_parameters(context.state.array_records[MAIN_PARAMS_RECORD], keep_input=True)
    (mean,) = parameters_to_ndarrays(parameters)
    return Mean(mean, float(sum(attempt.cohort.weights[name] for name in survivors)), survivors)


def _context(attempt: "FlowerAttempt") -> LegacyContext:
    """The workflow's context: all clients registered, and an empty model, so that none has to travel."""
    manager, clients = SimpleClientManager(), len(attempt.nodes)
    for node in attempt.nodes.values():
        manager.register(GridClientProxy(node, None, RUN))  # type: ignore[arg-type]
    strategy = OnlyTheMean(min_fit_clients=clients, min_available_clients=clients)
    context = LegacyContext(Context(RUN, 1, {}, RecordDict(), {}), strategy=strategy, client_manager=manager)
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: attempt.number})
    empty = compat.parameters_to_arrayrecord(Parameters([], "numpy.ndarray"), keep_input=True)
    context.state.array_records[MAIN_PARAMS_RECORD] = empty
    return context
