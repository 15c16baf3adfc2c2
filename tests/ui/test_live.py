import json

import pytest

from gemma_tune.runs.folding import fold
from gemma_tune.runs.state import State
from gemma_tune.ui import live

NO_LOG = (0, 0, [])


def event(kind: str, time: float, **fields) -> dict:
    return {"kind": kind, "time": time, **fields}


def training(steps: int) -> list[dict]:
    begin = [
        event(
            "created", 0.0, run="r", name="mine", model="pocket", method="lora", source="example:pocket-json"
        ),
        event("started", 1.0, attempt=1, resume_step=0, pid=1),
        event("phase", 2.0, name="training"),
        event(
            "plan",
            2.0,
            max_steps=steps,
            num_train_epochs=1,
            parameters=10,
            trainable_parameters=1,
            device="cpu",
        ),
    ]
    return begin + [
        event("metrics", 2.0 + step, step=step, max_steps=steps, epoch=step / steps, loss=3 - step / steps,
              learning_rate=1e-3, grad_norm=1.0, tokens=100 * step, step_seconds=1.0)
        for step in range(1, steps + 1)
    ]  # fmt: skip


def ask(state: State, now_version: int = 1, log=NO_LOG, /, **query) -> dict:
    return live.answer(state, now_version, {"attempt": -1, **query}, log, now=100.0)


def test_the_first_answer_holds_everything_and_the_next_only_what_is_new():
    state = fold(training(10))
    first = ask(state)
    assert first["reset"] and first["train"]["step"] == list(range(1, 11))
    cursor = {"attempt": state.attempt, "version": 1, "train": 10, "evals": 0, "hardware": 0, "log": 0}
    later = fold([event("metrics", 13.0, step=11, max_steps=12, loss=1.0)], state)
    second = ask(later, 2, **cursor)
    assert not second["reset"] and second["train"]["step"] == [11] and second["train"]["to"] == 11
    assert len(json.dumps(second["train"])) < 200


def test_nothing_new_is_a_few_bytes():
    state = fold(training(3))
    cursor = {"attempt": state.attempt, "version": 7, "train": 3, "evals": 0, "hardware": 0, "log": 0}
    answer = ask(state, 7, **cursor)
    assert answer["same"] and len(json.dumps(answer)) < 100


def test_a_resumed_run_with_a_shorter_curve_is_sent_anew():
    state = fold(training(10))
    resumed = fold([event("started", 50.0, attempt=2, resume_step=4, pid=2)], state)
    answer = ask(resumed, 2, attempt=1, version=1, train=10, evals=0, hardware=0, log=0)
    assert answer["reset"] and answer["train"]["step"] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "query", [{}, {"train": -5}, {"train": "x"}, {"train": None}, {"train": 10**9}, {"attempt": []}]
)
def test_a_hostile_or_stale_cursor_gets_a_whole_answer(query):
    answer = live.answer(fold(training(3)), 1, query, NO_LOG, 5.0)
    assert answer["train"]["step"] == [1, 2, 3]


def test_a_long_curve_is_thinned_and_keeps_its_extremes():
    points = [(step, 1.0, 0.0, 0.0) for step in range(100_000)]
    points[54_321] = (54_321, 99.0, 0.0, 0.0)
    thinned = live.thin(points, live.POINTS_DRAWN)
    assert len(thinned) <= live.POINTS_DRAWN
    assert (54_321, 99.0, 0.0, 0.0) in thinned
    assert [point[0] for point in thinned] == sorted(point[0] for point in thinned)


def ids(state: State) -> list[str]:
    return [action[0] for action in live.actions(state)]


def ended(outcome: str, **fields) -> dict:
    return event("ended", 60.0, outcome=outcome, exit_code=1, cause=fields.pop("cause", None), **fields)


def test_what_is_offered_next_depends_on_the_state():
    fresh = fold(training(5)[:2])
    running = fold(training(5))
    saved = event("saved", 50.0, path="model", bytes=10)
    checkpoint = event("checkpoint", 40.0, step=5, path="checkpoints/checkpoint-5", bytes=10)
    assert ids(fresh) == ["stop_now"]
    assert ids(running) == ["stop_keep", "stop_now"]
    assert ids(fold([event("stop_requested", 9.0, mode="keep")], running)) == ["stop_now"]
    assert ids(fold([saved, ended("finished")], running)) == ["compare", "reuse"]
    assert ids(fold([checkpoint, saved, ended("stopped")], running)) == ["resume", "compare", "reuse"]
    assert ids(fold([ended("failed", cause="bug")], running)) == ["resume", "reuse"]


def test_a_failed_run_shows_cause_advice_and_last_lines():
    state = fold(
        [
            *training(2),
            ended(
                "failed",
                cause="out_of_memory",
                message="It needed more.",
                way_out="Halve the batch.",
                log_tail=["boom"],
            ),
        ]
    )
    notice = live.notice(state)
    assert notice["title"] == "Out of memory"
    assert (notice["text"], notice["way_out"], notice["log_tail"]) == (
        "It needed more.",
        "Halve the batch.",
        ["boom"],
    )


def test_every_state_and_cause_has_words():
    for status in (
        "queued",
        "preparing",
        "training",
        "saving",
        "stopping",
        "finished",
        "stopped",
        "failed",
        "lost",
    ):
        assert status in live.STATUS
        state = State(
            status=status, outcome=status if status in ("finished", "stopped", "failed", "lost") else None
        )
        assert live.answer(state, 1, {}, NO_LOG, 1.0)["head"]["label"]
    assert set(live.CAUSES) == {
        "out_of_memory",
        "licence",
        "token",
        "data",
        "config",
        "disk",
        "nan_loss",
        "killed",
        "peer",
        "bug",
    }


def test_the_measures_of_an_objective_come_as_charts_that_are_there_before_their_first_point():
    created = event(
        "created", 0.0, run="r", name="mine", model="pocket", method="lora", objective="dpo", source="x"
    )
    told = [
        event("metrics", 3.0 + step, step=step, max_steps=9, loss=1.0,
              measures={"rewards/accuracies": step / 4, "rewards/chosen": 0.1, "logps": "odd"})
        for step in range(1, 4)
    ]  # fmt: skip
    empty = ask(fold([created]))["measures"]
    assert [chart["id"] for chart in empty["charts"]] == ["pairs", "rewards"] and empty["columns"][
        "step"
    ] == []
    state = fold([created, *told])
    columns = ask(state)["measures"]["columns"]
    assert columns["step"] == [1, 2, 3] and columns["rewards/accuracies"] == [0.25, 0.5, 0.75]
    assert columns["rewards/rejected"] == [None] * 3
    later = ask(state, attempt=state.attempt, version=0, train=3, measures=2)["measures"]
    assert later["columns"]["step"] == [3] and later["to"] == 3
    assert "DPO" in live.about(state)


def test_supervised_training_has_no_measures_of_its_own():
    assert ask(fold(training(3)))["measures"]["charts"] == []


def test_a_question_about_images_comes_with_its_pictures_and_without_their_places():
    asked = event(
        "sample",
        9.0,
        row=1,
        prompt="\ufffcWhich colour?",
        expected="red",
        base="",
        tuned="red",
        images=["a.png"],
    )
    plain = event("sample", 9.0, row=2, prompt="Say hat.", expected="hat", base="", tuned="hat")
    state = fold([*training(1), asked, plain])
    shown = live.answer(state, 1, {}, NO_LOG, 9.0, lambda names: [f"data:{name}" for name in names])[
        "samples"
    ]
    assert shown[0]["prompt"] == "Which colour?" and shown[0]["pictures"] == ["data:a.png"]
    assert "pictures" not in shown[1] and shown[1]["prompt"] == "Say hat."


def test_a_further_host_says_which_one_it_is():
    events = training(1)
    assert "host" not in live.about(fold(events))
    events[1] |= {"machine_rank": 2}
    assert live.about(fold(events)).endswith("· host 2")
