import shutil

import numpy as np
import pytest
from flower_kit import METRICS, NAMES, LocalGrid, Site, found
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.app.error import Error
from flwr.serverapp.strategy import FedAdam, FedAvg, Krum

from fedvlm_secure.encoding.codec import Codec
from fedvlm_secure.encoding.ring import Ring
from fedvlm_secure.engines.flower import SecureAggregator, SecureStrategy
from fedvlm_secure.engines.flower.vectors import flatten
from fedvlm_secure.engines.flower.wire import REFUSAL, ROUND, Header, put, take
from fedvlm_secure.errors import MisuseError, ProtocolError
from fedvlm_secure.federation.settings import AggregationTable

SIZE = 1000
WEIGHTS = {"clinic-a": 10, "clinic-b": 200, "clinic-c": 35, "clinic-d": 1}
SETTINGS = AggregationTable(rounding="nearest", clip_norm=50.0, attempts=1)


@pytest.fixture
def folders(tmp_path):
    return found(tmp_path)


@pytest.fixture
def grid(folders):
    rng = np.random.default_rng(5)
    sites = {
        100 + place: Site(folders[name], rng.normal(size=SIZE).astype(np.float32), WEIGHTS[name], place / 10)
        for place, name in enumerate(NAMES)
    }
    return LocalGrid(sites)


def start() -> ArrayRecord:
    return ArrayRecord([np.linspace(-1, 1, SIZE, dtype=np.float32)])


def aggregate(grid, folders, kind=MessageType.TRAIN, settings=SETTINGS, deadline=0.5, **options):
    options = {"metrics": METRICS} | options
    aggregator = SecureAggregator(grid, folders["server"], settings, deadline=deadline, **options)
    content = RecordDict({"arrays": start(), "config": ConfigRecord({"rate": 0.1})})
    return aggregator.aggregate(start(), dict.fromkeys(grid.sites, content), kind, timeout=0.5)


def expected(sites) -> np.ndarray:
    sites = list(sites)
    mean = sum(site.update.astype(np.float64) * site.examples for site in sites) / sum(s.examples for s in sites)
    return start().to_numpy_ndarrays()[0] + mean


def test_the_mean_is_the_weighted_mean_and_takes_five_messages(grid, folders):
    total = aggregate(grid, folders)
    np.testing.assert_allclose(total.arrays.to_numpy_ndarrays()[0], expected(grid.sites.values()), atol=2e-5)
    assert (total.survivors, total.dropped, total.weight) == (NAMES, (), sum(WEIGHTS.values()))
    wanted = sum(site.accuracy * site.examples for site in grid.sites.values()) / total.weight
    assert total.metrics == {"accuracy": pytest.approx(wanted, abs=1e-3)}
    assert len(grid.sent) == (1 + 5) * len(NAMES)  # a hello once a run, and five a round
    assert [site.trained for site in grid.sites.values()] == [1] * len(NAMES)


@pytest.mark.parametrize("protocol", ["pairwise", "plain"])
def test_no_reply_holds_an_encoded_update_a_weight_or_a_metric(grid, folders, protocol, monkeypatch):
    """Under ``plain`` the same search finds all of them."""
    encode, traces = Codec.encode, set()

    def watched(codec, update):
        encoded = encode(codec, update)
        ring = Ring(codec.layout.ring_bits(len(NAMES)))
        words = ring.from_signed(encoded.integers)
        traces.update([ring.pack(words[:8]), ring.pack(words[SIZE : SIZE + 2])])
        return encoded

    monkeypatch.setattr(Codec, "encode", watched)
    for site in grid.sites.values():
        (site.folder / "hospital.toml").write_text(f'[policy]\nprotocols = ["{protocol}"]\n')
    aggregate(grid, folders, settings=SETTINGS.model_copy(update={"protocol": protocol}))
    assert all(set(reply.content) == {"fedvlm-secure", "fedvlm-secure.bytes"} for _, _, reply in grid.sent)
    bodies = b"".join(take(reply.content)[1] for _, _, reply in grid.sent)
    assert len(traces) == 2 * len(NAMES)
    assert {trace in bodies for trace in traces} == {protocol == "plain"}


def test_arrays_of_doubles_lose_nothing_to_their_size(folders):
    """A difference of 1e-4 between numbers around 1e6, which single precision could not tell apart."""
    before = ArrayRecord([np.full(4, 1e6), np.ones(3, np.float32)])
    after = ArrayRecord([np.full(4, 1e6 + 1e-4), np.ones(3, np.float32)])
    np.testing.assert_allclose((flatten(after) - flatten(before))[:4], 1e-4, rtol=1e-5)


@pytest.mark.parametrize("phase", ["keys", "shares", "masked-input", "consistency", "unmask"])
def test_a_node_that_falls_silent_is_left_out_or_counted(grid, folders, phase):
    def lost(node, asked, reply):
        header, _ = take(asked.content)
        order = ["", "keys", "shares", "masked-input", "consistency", "unmask"]
        return None if node == 102 and order.index(header.phase) >= order.index(phase) else reply

    grid.tamper = lost
    total = aggregate(grid, folders)
    counted = phase in ("consistency", "unmask")
    assert ("clinic-c" in total.survivors) == counted
    sites = [site for node, site in grid.sites.items() if counted or node != 102]
    np.testing.assert_allclose(total.arrays.to_numpy_ndarrays()[0], expected(sites), atol=2e-5)


def test_evaluation_sums_metrics_only(grid, folders):
    total = aggregate(grid, folders, MessageType.EVALUATE)
    assert total.arrays == start()
    assert 0 < total.metrics["accuracy"] < 0.3
    assert [site.trained for site in grid.sites.values()] == [0] * len(NAMES)


def test_a_request_in_the_clear_is_refused(grid, folders):
    content = RecordDict({"arrays": start(), "config": ConfigRecord()})
    for kind in (MessageType.TRAIN, MessageType.EVALUATE):
        (reply,) = grid.send_and_receive([Message(content, 100, kind)])
        header, body = take(reply.content)
        assert (header.kind, body) == (REFUSAL, b"")
        assert "in the clear" in header.text
    assert grid.sites[100].trained == 0


def test_a_failed_attempt_is_repeated_with_the_same_training(grid, folders):
    def silent(node, asked, reply):
        header, _ = take(asked.content)
        return None if header.place == (1, 1) and header.phase == "shares" and node > 100 else reply

    grid.tamper = silent
    total = aggregate(grid, folders, settings=SETTINGS.model_copy(update={"attempts": 2}))
    assert total.survivors == NAMES
    assert [site.trained for site in grid.sites.values()] == [1] * len(NAMES)


@pytest.mark.parametrize("stopped", ["keys", "shares", "masked-input", "consistency", "unmask"])
def test_a_server_that_comes_back_goes_on_where_it_was(grid, folders, stopped):
    def killed(node, asked, reply):
        header, _ = take(asked.content)
        if header.phase == stopped and node == 102:
            raise KeyboardInterrupt
        return reply

    grid.tamper = killed
    with pytest.raises(KeyboardInterrupt):
        aggregate(grid, folders)
    grid.tamper = lambda node, asked, reply: reply
    total = aggregate(grid, folders)
    np.testing.assert_allclose(total.arrays.to_numpy_ndarrays()[0], expected(grid.sites.values()), atol=2e-5)
    assert total.survivors == NAMES
    assert [site.trained for site in grid.sites.values()] == [1] * len(NAMES)


def test_rounds_follow_each_other(grid, folders):
    first = aggregate(grid, folders)
    second = aggregate(grid, folders)  # the same arrays: trained anew, for a sum that was opened is never sent again
    assert first.arrays.keys() == second.arrays.keys()
    assert [site.trained for site in grid.sites.values()] == [2] * len(NAMES)


def test_a_node_outside_the_roster_and_one_under_a_wrong_name_are_left_out(grid, folders, tmp_path, caplog):
    stranger = found(tmp_path / "others")["clinic-a"]
    grid.sites[200] = Site(stranger, np.zeros(SIZE, np.float32), 1, 0.0)
    total = aggregate(grid, folders)
    assert total.survivors == NAMES
    assert "node 200 calls itself 'clinic-a' and cannot show that key" in caplog.text
    assert grid.sites[200].trained == 0


@pytest.mark.parametrize("phase", ["keys", "shares", "masked-input"])
def test_a_tampered_reply_is_left_out(grid, folders, phase, caplog):
    def flipped(node, asked, reply):
        header, _ = take(asked.content)
        if node == 101 and header.phase == phase:
            array = reply.content["fedvlm-secure.bytes"]["body"]
            array.data = array.data[:-1] + bytes([array.data[-1] ^ 1])
        return reply

    grid.tamper = flipped
    total = aggregate(grid, folders)
    assert "clinic-b" not in total.survivors
    assert "clinic-b is left out: round 1, attempt 1" in caplog.text


def test_another_servers_key_is_refused_by_every_node(grid, folders, tmp_path, caplog):
    other = found(tmp_path / "others")["server"]
    (other / "roster.cbor").write_bytes((folders["server"] / "roster.cbor").read_bytes())
    with pytest.raises(MisuseError, match="do not belong together"):
        aggregate(grid, folders | {"server": other})


def test_too_few_hospitals_is_a_sentence(grid, folders):
    for node in (101, 102, 103):
        del grid.sites[node]
    with pytest.raises(MisuseError, match="1 of 4 hospitals are connected"):
        aggregate(grid, folders)


@pytest.mark.parametrize("changes", [{"weight_max": 100}, {"value_bits": 16}])
def test_a_server_that_bounds_otherwise_is_refused_whatever_the_numbers(grid, folders, changes):
    with pytest.raises(ProtocolError):
        aggregate(grid, folders, settings=SETTINGS.model_copy(update=changes))
    told = {take(reply.content)[0].text for _, _, reply in grid.sent if take(reply.content)[0].kind == REFUSAL}
    assert len(told) == 1
    assert "proposes to sum something else than this node has agreed to" in told.pop()
    assert [site.trained for site in grid.sites.values()] == [0] * len(NAMES)


def test_more_examples_than_the_largest_weight_count_as_that(grid, folders):
    grid.sites[100].examples = 98_765
    assert aggregate(grid, folders).weight == 4096 + sum(WEIGHTS.values()) - WEIGHTS["clinic-a"]


def test_what_fails_at_a_node_is_told_to_its_owner_only(grid, folders, caplog):
    grid.sites[100].update = np.full(SIZE, np.nan, np.float32)
    grid.sites[101].update = np.zeros(SIZE + 1, np.float32)  # numpy's complaint would quote both shapes
    with pytest.raises(ProtocolError):
        aggregate(grid, folders)
    told = [take(reply.content)[0].text for _, _, reply in grid.sent if take(reply.content)[0].kind == REFUSAL]
    assert told == ["this node cannot take part; the reason is in its own log"] * 2
    assert "training has diverged" in caplog.text


def test_flowers_own_answer_for_a_node_that_is_gone_is_silence(grid, folders):
    def gone(node, asked, reply):
        if node != 102:
            return reply
        error = Message(Error(code=3, reason="Message Unavailable"), reply_to=asked)
        error.metadata.__dict__["_src_node_id"] = 1  # the SuperLink's
        return error if take(asked.content)[0].phase == "shares" else reply

    grid.tamper = gone
    assert aggregate(grid, folders).survivors == ("clinic-a", "clinic-b", "clinic-d")


def test_an_update_that_was_summed_in_one_run_is_refused_in_another(grid, folders, tmp_path):
    """The server of a second run has the same key and asks the same: the difference of the sums would be one update."""
    aggregate(grid, folders)
    for site in grid.sites.values():
        site.trained = 0  # a deterministic app
    again = tmp_path / "again"
    shutil.copytree(folders["server"], again, ignore=shutil.ignore_patterns("state", "transcript"))
    with pytest.raises(ProtocolError):
        aggregate(grid, folders | {"server": again})


def test_nothing_is_trained_for_a_request_that_the_server_has_not_signed(grid, folders):
    forged = put(Header(ROUND, "pairwise", "keys", (1, 1)), b"\0\0\0\1x", RecordDict({"arrays": start()}))
    (reply,) = grid.send_and_receive([Message(forged, 100, MessageType.TRAIN)])
    assert take(reply.content)[0].kind == REFUSAL
    assert grid.sites[100].trained == 0


def test_a_strategy_of_flowers_over_secure_sums(grid, folders):
    options = {"settings": SETTINGS, "metrics": METRICS, "deadline": 0.5}
    strategy = SecureStrategy(FedAvg(min_available_nodes=4), folders["server"], **options)
    result = strategy.start(grid, start(), num_rounds=2, timeout=0.5)
    mean = expected(grid.sites.values()) - start().to_numpy_ndarrays()[0]
    after = start().to_numpy_ndarrays()[0] + 2 * mean + 1 / 1024
    np.testing.assert_allclose(result.arrays.to_numpy_ndarrays()[0], after, atol=5e-5)
    assert set(result.train_metrics_clientapp) == {1, 2} == set(result.evaluate_metrics_clientapp)


def test_server_side_optimisers_work_and_robust_ones_are_refused(grid, folders):
    strategy = SecureStrategy(
        FedAdam(min_available_nodes=4, eta=0.1), folders["server"], settings=SETTINGS, metrics=METRICS, deadline=0.5
    )
    result = strategy.start(grid, start(), num_rounds=1, timeout=0.5)
    assert not np.allclose(result.arrays.to_numpy_ndarrays()[0], start().to_numpy_ndarrays()[0])
    with pytest.raises(MisuseError, match="Krum needs single updates"):
        SecureStrategy(Krum(), folders["server"])
