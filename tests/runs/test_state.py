import json
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_tune.runs.folding import HANDLERS, fold
from gemma_tune.runs.state import State

FIELDS = [
    "time", "name", "model", "behind", "attempt", "resume_step", "step", "max_steps", "epoch", "loss", "learning_rate",
    "grad_norm", "tokens", "step_seconds", "eval_loss", "gpus", "cpu_percent", "bytes", "message", "mode", "cause",
    "faults", "stopped", "outcome", "log_tail", "exit_code", "unheard_of",
]  # fmt: skip
WORDS = ["training", "saving", "keep", "now", "finished", "stopped", "failed", "lost", "", "x"]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 50),
    st.floats(-10, 1e9),
    st.just(float("inf")),
    st.sampled_from(WORDS),
)
VALUES = st.one_of(
    SCALARS, st.lists(SCALARS, max_size=3), st.just([{"utilization_percent": 50, "name": "GPU"}])
)
EVENTS = st.lists(
    st.builds(
        lambda kind, fields: {**fields, "kind": kind},
        st.sampled_from([*HANDLERS, "unheard_of"]),
        st.dictionaries(st.sampled_from(FIELDS), VALUES),
    ),
    max_size=30,
)


def run_of(*kinds_and_fields):
    return [
        {"seq": number, "by": "test-1", "time": 1000.0 + number, "kind": kind, **fields}
        for number, (kind, fields) in enumerate(kinds_and_fields, start=1)
    ]


def metrics(step, **fields):
    return "metrics", {"step": step, "max_steps": 10, "loss": 5.0 - step / 10, "tokens": 100 * step, **fields}


STARTED = ("started", {"attempt": 1, "resume_step": 0, "pid": 7})
ENDED = ("ended", {"outcome": "stopped", "exit_code": 0, "log_tail": ["a"]})


@settings(max_examples=80, deadline=None)
@given(EVENTS, EVENTS)
def test_folding_in_two_parts_is_folding_at_once(first, second):
    assert fold(first + second) == fold(second, fold(first))


@settings(max_examples=40, deadline=None)
@given(EVENTS)
def test_a_fold_changes_neither_its_events_nor_its_state(events):
    before, state = json.dumps(events), fold(events[:5])
    copy = fold(events[:5])
    fold(events[5:], state)
    assert json.dumps(events) == before
    assert state == copy


@settings(max_examples=40, deadline=None)
@given(EVENTS, EVENTS)
def test_unknown_kinds_and_fields_change_nothing(events, others):
    unknown = [{**event, "kind": "tomorrow"} for event in others]
    more = [{**event, "unheard_of": 1} for event in events]
    assert fold(unknown, fold(events)) == fold(events)
    assert fold(unknown + more).status == fold(events).status


def test_a_run_without_events_waits():
    state = fold([])
    assert (state.status, state.is_live, state.progress, state.remaining_seconds) == (
        "queued",
        True,
        0.0,
        None,
    )


def test_a_whole_run_goes_through_its_statuses():
    steps = [
        ("created", {"name": "mine", "model": "pocket", "method": "lora", "source": "example:x"}),
        ("queued", {"behind": "another"}),
        STARTED,
        ("phase", {"name": "loading"}),
        ("plan", {"max_steps": 10, "device": "cpu"}),
        ("phase", {"name": "training"}),
        metrics(1),
        ("phase", {"name": "saving"}),
        ("trained", {"step": 10, "stopped": False}),
        ("saved", {"path": "model", "bytes": 5}),
        ("ended", {"outcome": "finished", "exit_code": 0}),
    ]
    events = run_of(*steps)
    statuses = [fold(events[: count + 1]).status for count in range(len(events))]
    assert statuses == [
        "queued", "queued", "preparing", "preparing", "preparing", "training", "training", "saving", "saving", "saving",
        "finished",
    ]  # fmt: skip
    assert fold(events[:2]).behind == "another"
    state = fold(events)
    assert (state.name, state.progress, state.can_resume, state.saved["bytes"]) == ("mine", 1.0, False, 5)
    assert state.plan == {"max_steps": 10, "device": "cpu"}


def test_pace_and_remaining_time_come_from_the_events_times():
    state = fold(run_of(STARTED, *[metrics(step, step_seconds=0.5) for step in (1, 2, 3, 4)]))
    assert state.remaining_seconds == 6.0  # six steps, one second apart
    assert state.tokens_per_second == 200.0  # 100 tokens in half a second of computing
    assert state.progress == 0.4
    assert state.elapsed_seconds(now=1011.0) == 10.0


def test_resume_drops_the_points_after_its_step_and_forgets_the_end():
    points = [metrics(step) for step in range(1, 7)]
    evaluations = [
        ("evaluated", {"step": step, "eval_loss": loss}) for step, loss in ((2, 3.0), (4, 2.0), (6, 1.0))
    ]
    before = run_of(STARTED, *points, *evaluations, ("stop_requested", {"mode": "now"}), ENDED)
    after = [
        {"kind": "started", "attempt": 2, "resume_step": 4, "time": 2000.0},
        {"kind": "metrics", "step": 5, "loss": 1.5, "time": 2001.0},
    ]
    state = fold(after, fold(before))
    assert [point[0] for point in state.train_points] == [1, 2, 3, 4, 5]
    assert state.eval_points == ((2, 3.0), (4, 2.0))
    assert (state.best_eval_loss, state.attempt, state.resume_step) == (2.0, 2, 4)
    assert (state.status, state.stop_mode, state.outcome, state.log_tail) == ("training", None, None, ())
    assert state.elapsed_seconds(2010.0) == 11 + 10


def test_a_stop_shows_until_the_end_and_now_overrides_keep():
    events = run_of(STARTED, ("stop_requested", {"mode": "keep"}), metrics(3), ("phase", {"name": "saving"}))
    assert fold(events).status == "stopping"
    assert fold(events).stop_mode == "keep"
    assert (
        fold(run_of(("stop_requested", {"mode": "now"}), ("stop_requested", {"mode": "keep"}))).stop_mode
        == "now"
    )


def test_a_stop_that_came_after_the_end_changes_nothing():
    ended = fold(run_of(STARTED, ("ended", {"outcome": "finished"})))
    late = [{"kind": "stop_requested", "mode": "now", "time": 5000.0}]
    assert (fold(late, ended).status, fold(late, ended).stop_mode) == ("finished", None)


def test_only_the_first_end_of_an_attempt_counts():
    state = fold(run_of(STARTED, ("ended", {"outcome": "finished"}), ("ended", {"outcome": "lost"})))
    assert state.outcome == "finished"


def test_a_lost_run_ended_at_its_last_sign_of_life():
    state = fold(run_of(STARTED, metrics(1)) + [{"kind": "ended", "outcome": "lost", "time": 9e9}])
    assert state.ended_time == 1002.0


def test_a_loss_that_is_no_number_is_no_point():
    state = fold(run_of(STARTED, metrics(1), metrics(2, loss=None)))
    assert (state.step, state.loss, len(state.train_points)) == (2, None, 1)


def test_several_gpus_are_one_point():
    gpus = [{"utilization_percent": load, "memory_used_bytes": 10} for load in (20, 40)]
    state = fold(run_of(("hardware", {"cpu_percent": 5, "gpus": gpus})))
    assert state.hardware_points == ((1001.0, 5, None, None, 30.0, 20),)


def test_a_hundred_thousand_events_fold_in_seconds():
    events = [{"time": float(step), "kind": "metrics", "step": step, "loss": 1.0} for step in range(100_000)]
    begin = time.perf_counter()
    assert len(fold(events).train_points) == 100_000
    assert time.perf_counter() - begin < 5


def test_states_are_equal_only_where_their_fields_are():
    assert State() == fold([])
    assert fold(run_of(STARTED)) != State()


def test_a_run_that_goes_on_smaller_forgets_the_cause_and_adds_up_its_time():
    first = [
        {"kind": "started", "time": 10.0, "attempt": 1},
        {"kind": "metrics", "time": 20.0, "step": 4, "loss": 1.0},
        {"kind": "error", "time": 21.0, "cause": "out_of_memory", "faults": [{"rule": "no"}]},
        {"kind": "started", "time": 25.0, "attempt": 2, "resume_step": 2},
    ]
    state = fold(first)
    assert (state.cause, state.faults, state.spent_seconds, state.train_points) == (None, (), 15.0, ())
    assert state.elapsed_seconds(now=30.0) == 20.0


def test_a_step_told_again_replaces_what_was_told_after_it():
    told = [{"kind": "metrics", "step": step, "loss": float(step)} for step in (1, 2, 3, 2)]
    assert [point[0] for point in fold(told).train_points] == [1, 2]


def test_a_reward_model_answers_nothing_so_there_is_nothing_to_compare():
    created = {"kind": "created", "seq": 1, "objective": "reward"}
    saved = {"kind": "saved", "seq": 2, "path": "model", "bytes": 1}
    assert not fold([created, saved]).can_compare
    assert fold([created | {"objective": "dpo"}, saved]).can_compare
