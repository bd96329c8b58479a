"""Slow and obvious references in NumPy, written without the package under test."""

import numpy as np


def psp(tau_mem, tau_syn, t):
    """Voltage after a unit jump of the current, from the textbook."""
    if abs(tau_mem - tau_syn) < 1e-9 * tau_mem:
        return t / tau_mem * np.exp(-t / tau_mem)
    if abs(tau_mem - tau_syn) < 1e-3 * tau_mem:
        # The textbook's difference cancels; its Taylor series in the difference does
        # not: k = t/tau_m e^(-t/tau_s) (1 + x/2 + x^2/6 + ...),
        # x = t (1/tau_s - 1/tau_m).
        x = t * (tau_mem - tau_syn) / (tau_mem * tau_syn)
        return t / tau_mem * np.exp(-t / tau_syn) * (1 + x / 2 + x**2 / 6 + x**3 / 24)
    gain = tau_syn / (tau_mem - tau_syn)
    return gain * (np.exp(-t / tau_mem) - np.exp(-t / tau_syn))


def euler(neuron, weights, time, index, until, dt, max_spikes):
    """Spike times of one neuron by small Euler steps, interpolated at the threshold."""
    weights, time = np.asarray(weights), np.asarray(time)
    v, i = neuron.v_leak, 0.0
    spikes, events = [], sorted(zip(time, index, strict=True))
    steps = round(until / dt)
    for step in range(steps):
        t = step * dt
        while events and events[0][0] <= t:
            i += weights[events.pop(0)[1]]
        before = v
        v += dt / neuron.tau_mem * (neuron.v_leak - v + i)
        i -= dt / neuron.tau_syn * i
        if v > neuron.v_th:
            spikes.append(t + dt * (neuron.v_th - before) / (v - before))
            v = neuron.v_reset
            if len(spikes) == max_spikes:
                break
    return np.array(spikes)


def spike_train(neuron, weights, time, index, until, max_spikes):
    """Spike times of one neuron: dense scan of the exact voltage, then bisection."""
    weights, time = np.asarray(weights), np.asarray(time)
    v = neuron.v_reset if neuron.v_leak > neuron.v_th else neuron.v_leak
    i, t, spikes = 0.0, 0.0, []
    events = sorted(zip(time, index, strict=True))
    events = [e for e in events if e[0] < until] + [(until, None)]

    def voltage(s):
        decay = np.exp(-s / neuron.tau_mem)
        k = psp(neuron.tau_mem, neuron.tau_syn, s)
        return neuron.v_leak + (v - neuron.v_leak) * decay + i * k

    for event_time, source in events:
        while len(spikes) < max_spikes:
            grid = np.linspace(0, event_time - t, 2000)
            above = np.nonzero(voltage(grid) > neuron.v_th)[0]
            if above.size == 0:
                break
            low, high = grid[above[0] - 1], grid[above[0]]
            for _ in range(200):
                middle = 0.5 * (low + high)
                if voltage(middle) > neuron.v_th:
                    high = middle
                else:
                    low = middle
            t += high
            i *= np.exp(-high / neuron.tau_syn)
            v = neuron.v_reset
            spikes.append(t)
        s = event_time - t
        v, i, t = voltage(s), i * np.exp(-s / neuron.tau_syn), event_time
        if source is not None:
            i += weights[source]
    return np.array(spikes)
