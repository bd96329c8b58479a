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


def recurrent_trains(neuron, kernel, time, lateral, delay, until, max_spikes):
    """Spike times of neurons that are connected, [neurons, max_spikes], as above.

    Each input spikes once, at `time`; `delay` is that of `lateral`, or of all of it.
    """
    neurons = kernel.shape[1]
    delay = np.broadcast_to(delay, lateral.shape)
    events = [(t, kernel[j]) for j, t in enumerate(time)]
    v = np.full(
        neurons, neuron.v_reset if neuron.v_leak > neuron.v_th else neuron.v_leak
    )
    i, now = np.zeros(neurons), 0.0
    count, found = np.zeros(neurons, int), np.full((neurons, max_spikes), np.inf)

    def after(dt):
        v_dt = neuron.v_leak + (v - neuron.v_leak) * np.exp(-dt / neuron.tau_mem)
        v_dt = v_dt + i * psp(neuron.tau_mem, neuron.tau_syn, dt)
        return v_dt, i * np.exp(-dt / neuron.tau_syn)

    def over(dt):
        return (after(dt)[0] > neuron.v_th) & (count < max_spikes)

    while True:
        events.sort(key=lambda event: event[0])
        stop = min(events[0][0], until) if events else until
        grid = np.linspace(0, stop - now, 1001)[:, None]
        hit = np.nonzero(over(grid).any(1))[0]
        if hit.size:
            # Another neuron that crosses at the same time is over already.
            low, high = grid[max(hit[0] - 1, 0), 0], grid[hit[0], 0]
            for _ in range(60):
                middle = 0.5 * (low + high)
                low, high = (low, middle) if over(middle).any() else (middle, high)
            n = int(np.argmax(over(high)))
            (v, i), now = after(high), now + high
            v[n] = neuron.v_reset
            found[n, count[n]] = now
            count[n] += 1
            one = np.eye(neurons)
            events += [(now + delay[n, m], lateral[n] * one[m]) for m in range(neurons)]
        elif stop >= until:
            return found
        else:
            (v, i), now = after(stop - now), stop
            i = i + events.pop(0)[1]


def voltages(neuron, arrivals, own, at, v=None, i=0.0, begin=0.0):
    """Voltage of one neuron by Runge-Kutta steps between all that happens.

    `arrivals` are (time, weight), `own` the neuron's spikes; at one of these the
    voltage is that before. `v` and `i` are those at `begin`.
    """
    tau_mem, tau_syn, leak = neuron["tau_mem"], neuron["tau_syn"], neuron["v_leak"]
    now, held, v = begin, -np.inf, leak if v is None else v
    found = {}
    what = [(t, 1, w) for t, w in arrivals] + [(t, 2, None) for t in own]
    what += [(t + neuron["t_ref"], 3, None) for t in own] + [(t, 0, None) for t in at]

    def slope(y, frozen):
        return np.array(
            [0 if frozen else (leak - y[0] + y[1]) / tau_mem, -y[1] / tau_syn]
        )

    for t, kind, weight in sorted(what, key=lambda event: event[:2]):
        y, h = np.array([v, i]), (max(t, begin) - now) / 50
        for _ in range(50):
            frozen = now < held
            a = slope(y, frozen)
            b = slope(y + h / 2 * a, frozen)
            c = slope(y + h / 2 * b, frozen)
            y = y + h / 6 * (a + 2 * b + 2 * c + slope(y + h * c, frozen))
        (v, i), now = y, max(t, begin)
        if kind == 0:
            found[t] = v
        elif kind == 1:
            i += weight
        elif kind == 2:
            v, held = neuron["v_reset"], t + neuron["t_ref"]
    return np.array([found[t] for t in at])
