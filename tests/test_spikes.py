"""The data type: order, sentinels, conversions, and what it refuses."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsnn import Spikes, concatenate
from jaxsnn.spikes import _sort_keys, argsort_times

INF = np.inf


def random_events(seed, batch=3, slots=12, size=4):
    rng = np.random.default_rng(seed)
    time = rng.uniform(0, 1, (batch, slots)).astype(np.float32)
    index = rng.integers(-1, size, (batch, slots))
    return time, index


def test_from_events_sorts_pads_and_breaks_ties_by_index():
    spikes = Spikes.from_events(
        np.float32([[2, 1, 1, INF, 3]]), np.array([[0, 2, 1, 0, -1]]), 3
    )
    np.testing.assert_array_equal(spikes.time, [[1, 1, 2, INF, INF]])
    np.testing.assert_array_equal(spikes.index, [[1, 2, 0, -1, -1]])
    # What from_events made, the strict constructor accepts.
    Spikes(spikes.time, spikes.index, 3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 2, 3, 120, 1000])
@pytest.mark.parametrize("spread", ["even", "one outlier", "many ties", "signed"])
def test_argsort_times_is_the_stable_sort(dtype, n, spread):
    rng = np.random.default_rng(n)
    time = rng.uniform(0, 1, (5, n))
    if spread == "one outlier":  # Nearly all times round to the same integer.
        time *= 1e-6
        time[:, 0] = 1e6
    if spread == "many ties":
        time = np.round(time * 3)
    if spread == "signed":
        time = time * 2 - 1
    time[rng.uniform(size=time.shape) < 0.2] = INF
    time[0] = INF
    with jax.enable_x64(dtype == "float64"):
        order = argsort_times(jnp.asarray(time, dtype))
        expected = np.argsort(np.asarray(time, dtype), axis=-1, kind="stable")
        np.testing.assert_array_equal(order, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [2, 3, 7, 64, 100, 129])
def test_argsort_times_of_many_rows_is_the_stable_sort(dtype, n):
    # From 16 rows on a network sorts, on CPUs.
    rng = np.random.default_rng(n)
    time = rng.uniform(0, 1, (40, n))
    time[:20] = np.round(time[:20] * 3)  # Many ties.
    time[rng.uniform(size=time.shape) < 0.2] = INF
    time[0], time[1] = INF, 0.5
    with jax.enable_x64(dtype == "float64"):
        order = argsort_times(jnp.asarray(time, dtype))
        expected = np.argsort(np.asarray(time, dtype), axis=-1, kind="stable")
        np.testing.assert_array_equal(order, expected)


@pytest.mark.parametrize("n", [5, 8, 9])
def test_the_network_sorts(n):
    # One that sorts all columns of zeros and ones sorts every column (Knuth, 5.3.4).
    # Asked directly, since argsort_times repairs what it finds unsorted.
    columns = np.array(list(itertools.product([0, 1], repeat=n))).T
    np.testing.assert_array_equal(_sort_keys(jnp.asarray(columns)), np.sort(columns, 0))


def test_times_per_source_and_back():
    time, index = random_events(0)
    events = Spikes.from_events(time, index, 4)
    times = events.times(12)
    again = Spikes.from_times(times)
    np.testing.assert_array_equal(again.time[:, :12], events.time)
    np.testing.assert_array_equal(again.index[:, :12], events.index)
    np.testing.assert_array_equal(again.count(), events.count())
    for b in range(3):
        for source in range(4):
            expected = np.sort(time[b][index[b] == source])
            found = times[b, source]
            np.testing.assert_array_equal(found[: expected.size], expected)
            assert (found[expected.size :] == INF).all()
            assert events.count()[b, source] == expected.size
            first = expected[0] if expected.size else INF
            assert events.first()[b, source] == again.first()[b, source] == first


@pytest.mark.parametrize("by_source", [False, True])
def test_windows_split_a_train(by_source):
    time, index = random_events(1)
    spikes = Spikes.from_events(time, index, 4)
    if by_source:
        spikes = Spikes.from_times(spikes.times(12))
    cuts = [0.0, 0.3, float(spikes.time[0, 2]), 2.0]  # One cut is exactly at a spike.
    cuts.sort()
    total = 0
    for start, stop in itertools.pairwise(cuts):
        part = spikes.window(start, stop)
        Spikes(part.time, part.index, 4)  # Well formed.
        inside = np.isfinite(part.time)
        assert ((part.time[inside] >= start) & (part.time[inside] < stop)).all()
        np.testing.assert_array_equal(
            part.count(), Spikes(part.time, part.index, 4).count()
        )
        total += part.count()
    np.testing.assert_array_equal(total, spikes.count())


@pytest.mark.parametrize("by_source", [False, True])
def test_concatenate_numbers_sources_through(by_source):
    parts = [Spikes.from_events(*random_events(s), 4) for s in (2, 3)]
    if by_source:
        parts = [Spikes.from_times(p.times(12)) for p in parts]
    merged = concatenate(*parts)
    assert merged.size == 8
    Spikes(merged.time, merged.index, 8)
    np.testing.assert_array_equal(merged.times(12)[:, :4], parts[0].times(12))
    np.testing.assert_array_equal(merged.times(12)[:, 4:], parts[1].times(12))


def test_times_are_differentiable_through_the_sort():
    times = jnp.array([[3.0], [1.0], [jnp.inf], [2.0]])
    weight = jnp.array([10.0, 20.0, 30.0, 0.0])

    def loss(times):
        time = Spikes.from_times(times).time
        return jnp.sum(jnp.where(jnp.isfinite(time), time, 0) * weight)

    np.testing.assert_array_equal(jax.grad(loss)(times), [[30], [10], [0], [20]])


def test_other_times_do_not_keep_the_old_view_by_source():
    import dataclasses

    spikes = Spikes.from_times(jnp.array([[1.0], [2.0]]))
    later = dataclasses.replace(spikes, time=spikes.time + 1)
    np.testing.assert_array_equal(later.first(), [2, 3])


def test_it_is_a_pytree_for_jit_vmap_and_tree_map():
    spikes = Spikes.from_events(*random_events(4), 4)
    double = jax.jit(lambda s: jax.tree.map(lambda x: x, s))(spikes)
    assert double.size == 4
    np.testing.assert_array_equal(double.time, spikes.time)
    counts = jax.vmap(lambda s: s.count())(spikes)
    np.testing.assert_array_equal(counts, spikes.count())


@pytest.mark.parametrize(
    ("time", "index", "size", "message"),
    [
        ([1.0, 2.0], [0], 1, r"time has shape \(2,\) and index \(1,\)"),
        ([1.0, np.nan], [0, 0], 1, "contains NaN"),
        ([2.0, 1.0], [0, 0], 1, "not ascending"),
        ([1.0, 1.0], [1, 0], 2, "not ordered by index"),
        ([1.0, 2.0], [0, 3], 3, r"expected sources in\s+\[0, 3\)"),
        ([1.0, INF], [0, 0], 1, "empty slot has time"),
        ([INF, 1.0], [-1, 0], 1, "not ascending"),
        ([1.0], [0], 0, "size is 0"),
        ([1.0], [0.0], 1, "index has dtype float64"),
        ([-INF], [0], 1, "contains -inf"),
    ],
)
def test_bad_spikes_are_refused(time, index, size, message):
    with pytest.raises(ValueError, match=message):
        Spikes(np.asarray(time, np.float32), np.asarray(index), size)


def test_more_bad_input():
    with pytest.raises(ValueError, match="dtype int"):
        Spikes(np.array([1]), np.array([0]), 1)
    with pytest.raises(ValueError, match=r"expected \[\*batch, size, n\]"):
        Spikes.from_times(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="NaN"):
        Spikes.from_times(np.full((3, 1), np.nan, np.float32))
    with pytest.raises(ValueError, match="batch shapes"):
        concatenate(
            Spikes.from_times(np.zeros((2, 3, 1), np.float32)),
            Spikes.from_times(np.zeros((3, 3, 1), np.float32)),
        )
    with pytest.raises(ValueError, match="slots is 0"):
        Spikes.from_times(np.zeros((2, 3, 1), np.float32)).keep(0)


def test_own_simultaneous_spikes_share_the_last_slot():
    spikes, dropped = Spikes.from_times(
        jnp.array([[[1.0, 1.0, 1.0], [0.5, 2, 2]]])
    ).keep(3)
    np.testing.assert_array_equal(spikes.count(), [[2, 1]])
    np.testing.assert_array_equal(dropped, [3])
    np.testing.assert_array_equal(spikes.times(3), [[[1, 1, INF], [0.5, INF, INF]]])


def test_no_event_at_all():
    nothing = Spikes(np.zeros((2, 0), np.float32), np.zeros((2, 0), np.int32), 3)
    np.testing.assert_array_equal(nothing.count(), np.zeros((2, 3)))
    np.testing.assert_array_equal(nothing.first(), np.full((2, 3), INF))
    assert nothing.window(0, 1).time.shape == (2, 0)


@pytest.mark.parametrize("by_source", [True, False])
def test_each_sample_may_have_a_window_of_its_own(by_source):
    times = np.array([[[1.0, 4.0], [2.0, 3.0]], [[1.0, 4.0], [2.0, 3.0]]])
    spikes = Spikes.from_times(jnp.asarray(times))
    if not by_source:
        spikes = Spikes(spikes.time, spikes.index, spikes.size)
    start, stop = jnp.array([[0.0], [2.0]]), jnp.array([[2.5], [3.5]])
    part = spikes.window(start, stop)
    np.testing.assert_array_equal(part.time[:, :2], [[1, 2], [2, 3]])
    np.testing.assert_array_equal(part.index[:, :2], [[0, 1], [1, 1]])
    inf = np.inf
    expected = [[[1, inf], [2, inf]], [[inf, inf], [2, 3]]]
    np.testing.assert_array_equal(np.sort(part.times(2), -1), expected)
