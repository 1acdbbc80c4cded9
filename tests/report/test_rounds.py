from fedvlm_secure.report.reading import RunRecord
from fedvlm_secure.report.rounds import attempts, costs

BYTES = {"keys": {"request": 40, "reply": 80}}


def test_what_an_aborted_attempt_cost_is_in_the_total_and_in_no_hospitals_average() -> None:
    done = {"kind": "training", "round": 1, "attempt": 2, "survivors": ["a", "b", "c"], "dropped": ["d"]}
    aborted = {"kind": "aborted", "round": 1, "attempt": 1, "reason": "too few"}
    run = RunRecord("", {}, tuple(line | {"bytes": BYTES} for line in (aborted, done)), None, ())
    keys, total = costs(attempts(run))
    assert (keys.down, keys.up) == (total.down, total.up) == (80, 160)
    assert (keys.down_each, keys.up_each) == (10, 20)
