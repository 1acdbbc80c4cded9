"""One round of Flower's SecAgg+ in this process: flwr's own workflow on one side, its own client mod on the other.

Counted are the CPU seconds of the protocol's code, quantisation included. Not counted, in flwr's favour: its messages'
way to and from bytes, the copies that keep the clients of one process apart, and a strategy's work on the mean.
"""

import copy
import logging
import os
import time
from collections.abc import Iterable

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when flwr is imported

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitRes, Parameters, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import Stage
from flwr.common.serde import recorddict_to_proto
from flwr.compat.common import recorddict_compat as compat
from flwr.server import LegacyContext, SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import WorkflowState
from flwr.supercore.task_identity import TaskIdentity
from measure import CLIENT, SERVER, Meter, Updates

RUN = 1


class Cohort:
    """The clients, as the grid that the workflow sends its messages through."""

    def __init__(self, updates: Updates, silent: set[int], meter: Meter) -> None:
        self.updates, self.silent, self.meter = updates, silent, meter
        self.contexts = [Context(RUN, node, {}, RecordDict(), {}) for node in range(len(updates.values))]
        self.stage = Stage.SETUP

    def send_and_receive(self, messages: Iterable[Message], timeout: float | None = None) -> list[Message]:
        """Every client's reply to its message, from those that are not silent."""
        since = time.process_time()
        silent = self.silent if self.stage == Stage.COLLECT_MASKED_VECTORS else set()
        replies = [self.reply(message) for message in messages if message.metadata.dst_node_id not in silent]
        self.meter.counts[SERVER, self.stage] -= time.process_time() - since  # the caller counts the whole stage
        return replies

    def reply(self, message: Message) -> Message:
        """One client's reply. Its mod is given a copy: it changes the message, which other clients get as well."""
        node = message.metadata.dst_node_id
        request, trained = copy.deepcopy(message), RecordDict()
        if self.stage == Stage.COLLECT_MASKED_VECTORS:
            parameters = ndarrays_to_parameters([self.updates.values[node]])
            result = FitRes(Status(Code.OK, ""), parameters, self.updates.weights[node], {})
            trained = compat.fitres_to_recorddict(result, keep_input=True)

        def train(message: Message, context: Context) -> Message:
            return Message(trained, reply_to=message)

        reply = self.meter.timed(CLIENT, self.stage, secaggplus_mod, request, self.contexts[node], train)
        self.meter.exchanged(self.stage, _size(message), _size(reply))
        return reply


class OnlyTheMean(FedAvg):
    """A strategy that takes what the workflow gives each client's result: the mean."""

    def aggregate_fit(self, server_round, results, failures):
        """The first result's parameters."""
        return results[0][1].parameters, {}


def flwr_round(updates: Updates, threshold: int, silent: set[int]) -> Meter:
    """What a complete round costs.

    Raises:
        RuntimeError: the workflow stopped early, or its mean is wrong.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN, 1, 1
    meter = Meter()
    cohort, context, workflow = Cohort(updates, silent, meter), _context(updates), SecAggWorkflow(threshold)
    state = WorkflowState()
    stages = (
        workflow.setup_stage,
        workflow.share_keys_stage,
        workflow.collect_masked_vectors_stage,
        workflow.unmask_stage,
    )
    for cohort.stage, stage in zip(Stage.all(), stages, strict=True):
        if not meter.timed(SERVER, cohort.stage, stage, cohort, context, state):
            raise RuntimeError(f"flwr's workflow stopped at {cohort.stage}")
    parameters = compat.arrayrecord_to_parameters(context.state.array_records[MAIN_PARAMS_RECORD], keep_input=True)
    (mean,) = parameters_to_ndarrays(parameters)
    updates.check(mean, silent, 2 * workflow.clipping_range / workflow.quantization_range * workflow.max_weight)
    return meter


def _context(updates: Updates) -> LegacyContext:
    """The workflow's context: all clients registered, and an empty model, so that none has to travel."""
    manager, clients = SimpleClientManager(), len(updates.values)
    for node in range(clients):
        manager.register(GridClientProxy(node, None, RUN))
    strategy = OnlyTheMean(min_fit_clients=clients, min_available_clients=clients)
    context = LegacyContext(Context(RUN, 1, {}, RecordDict(), {}), strategy=strategy, client_manager=manager)
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    empty = compat.parameters_to_arrayrecord(Parameters([], "numpy.ndarray"), keep_input=True)
    context.state.array_records[MAIN_PARAMS_RECORD] = empty
    return context


def _size(message: Message) -> int:
    return int(recorddict_to_proto(message.content).ByteSize())
