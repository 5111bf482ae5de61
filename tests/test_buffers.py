"""Row layout and ring buffer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rllib_damo.utils.batch import Layout, RingBuffer

LAYOUT = Layout(obs_dim=3, act_dim=2)
CPU = torch.device("cpu")


def numbered(start: int, stop: int) -> torch.Tensor:
    """Rows start ... stop-1, each filled with its number."""
    return torch.arange(start, stop, dtype=torch.float32)[:, None].expand(-1, LAYOUT.width)


def content(buffer: RingBuffer) -> list[float]:
    return sorted(buffer.rows[: len(buffer), 0].tolist())


def test_layout_round_trip() -> None:
    rng = np.random.default_rng(0)
    columns = (
        rng.normal(size=(7, 3)).astype(np.float32),
        rng.normal(size=(7, 2)).astype(np.float32),
        rng.normal(size=(7, 3)).astype(np.float32),
        rng.normal(size=7).astype(np.float32),
        rng.integers(0, 2, 7).astype(bool),
    )
    rows = LAYOUT.pack(*columns)
    assert rows.shape == (7, LAYOUT.width) == (7, 10)
    assert rows.dtype == np.float32
    batch = LAYOUT.unpack(torch.from_numpy(rows))
    for actual, expected in zip(batch, columns, strict=True):
        np.testing.assert_array_equal(actual.numpy(), expected.astype(np.float32))
    assert batch.obs.data_ptr() == torch.from_numpy(rows).data_ptr()  # views


def test_layout_of_no_rows() -> None:
    rows = LAYOUT.pack(*(np.zeros((0, n)) for n in (3, 2, 3)), np.zeros(0), np.zeros(0))
    assert rows.shape == (0, 10)


def test_layout_refuses_columns_of_other_widths() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        LAYOUT.pack(np.zeros((4, 5)), np.zeros((4, 2)), np.zeros((4, 3)), np.zeros(4), np.zeros(4))


@pytest.mark.parametrize("sizes", [[3], [10], [4, 4, 4], [10, 10], [7, 9], [25], [0, 3, 0, 9], [3, 27, 4], [9, 1, 1]])
def test_ring_buffer_keeps_the_newest_rows(sizes: list[int]) -> None:
    buffer, total = RingBuffer(LAYOUT, 10, CPU), 0
    for size in sizes:
        buffer.add(numbered(total, total + size))
        total += size
        assert len(buffer) == min(total, 10)
        assert content(buffer) == list(range(max(0, total - 10), total))


def test_ring_buffer_overwrites_the_oldest_row_first() -> None:
    buffer = RingBuffer(LAYOUT, 5, CPU)
    buffer.add(numbered(0, 4))
    buffer.add(numbered(4, 7))
    assert buffer.rows[:, 0].tolist() == [5, 6, 2, 3, 4]


@pytest.mark.parametrize("sizes", [[], [4], [10], [8, 7]])
def test_state_round_trip(sizes: list[int]) -> None:
    buffer, total = RingBuffer(LAYOUT, 10, CPU), 0
    for size in sizes:
        buffer.add(numbered(total, total + size))
        total += size
    restored = RingBuffer(LAYOUT, 10, CPU)
    restored.add(numbered(1000, 1006))  # what it held before is gone
    restored.set_state(buffer.get_state())
    assert content(restored) == content(buffer)
    for b in (buffer, restored):
        b.add(numbered(100, 103))
    torch.testing.assert_close(restored.rows[: len(restored)], buffer.rows[: len(buffer)])


def test_state_is_a_snapshot() -> None:
    """Rows that are added later do not change a state that was taken before."""
    buffer = RingBuffer(LAYOUT, 4, CPU)
    buffer.add(numbered(0, 4))
    state = buffer.get_state()
    buffer.add(numbered(10, 14))
    assert state["rows"][:, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("sizes", [[], [4], [10], [8, 7]])
@pytest.mark.parametrize("capacity", [3, 7, 20])
def test_a_buffer_of_another_capacity_takes_the_newest_rows(capacity: int, sizes: list[int]) -> None:
    """A search may change the length of rollouts from a checkpoint on."""
    buffer, total = RingBuffer(LAYOUT, 10, CPU), 0
    for size in sizes:
        buffer.add(numbered(total, total + size))
        total += size
    other = RingBuffer(LAYOUT, capacity, CPU)
    other.set_state(buffer.get_state())
    kept = min(total, 10, capacity)
    assert content(other) == list(range(total - kept, total))
    other.add(numbered(total, total + 2))
    kept = min(kept + 2, capacity)
    assert content(other) == list(range(total + 2 - kept, total + 2))
