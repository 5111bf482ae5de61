"""The table that a run prints."""

from __future__ import annotations

from rllib_damo.command.progress import ProgressTable


def test_progress_columns_join_when_their_numbers_do() -> None:
    table = ProgressTable()
    header, row = table.lines("t", {"training_iteration": 1, "phase": "dynamics", "dynamics": {"holdout_loss": -3.2}})
    assert "holdout loss" in header
    assert "score" not in header
    assert "-3.200" in row
    evaluation = {"env_runners": {"episode_return_mean": 1234.5, "normalized_score": 38.56}}
    header, row = table.lines(
        "t", {"training_iteration": 2, "num_gradient_steps_lifetime": 1000, "evaluation": evaluation}
    )
    assert "score" in header
    assert "1234.5" in row
    assert "38.6" in row
    assert len(header) == len(row)
    assert len(table.lines("t", {"training_iteration": 3, "time_total_s": 3671.0})) == 2  # the column of the time joins
    (row,) = table.lines("t", {"training_iteration": 4, "time_total_s": 3671.0})
    assert "1:01:11" in row


def test_real_steps_and_the_return_of_online_episodes_have_columns() -> None:
    table = ProgressTable()
    (header, _) = table.lines("t", {"num_gradient_steps_lifetime": 200})
    assert "real steps" not in header
    online = {"num_gradient_steps_lifetime": 300, "num_online_steps_lifetime": 100}
    header, row = table.lines("t", online | {"online": {"episode_return_mean": -1234.56}})
    assert header.split() == ["steps", "real", "steps", "online", "return"]
    assert row.split() == ["300", "100", "-1234.6"]
    assert len(header) == len(row)
    (row,) = table.lines("t", online | {"online": {"episode_return_mean": float("nan")}})  # no episode has ended
    assert row.split() == ["300", "100", "-"]
