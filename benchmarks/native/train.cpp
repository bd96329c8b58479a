// What the benchmarked training step costs without a framework: one thread, by hand.
//
//     mkdir -p build
//     g++ -O3 -march=native -ffast-math benchmarks/native/train.cpp -o build/train
//     build/train --check
//
// Inputs, hidden and output neurons, time-to-first-spike coding: every neuron spikes
// at most once, v_th = 1, v_leak = 0, tau_mem = 2 tau_syn. A training step encodes
// values as spike times, sorts, simulates, computes the loss, its exact gradient
// (EventProp), and updates the weights with Adam or SGD. `--check` compares the
// gradient with central differences first; `--problem` and `--gradient` name files.
// Prints one JSON object.
//
// Times are in units of tau_mem. After an event, a neuron that has not fired follows
//
//     V(t) = a x - b x^2,   x = exp(-t),   t since the event,
//
// where an event multiplies a by x and b by x^2 and adds its weight to both. V meets 1
// from below where b x^2 - a x + 1 = 0 has its larger root x = (a + r) / (2 b), r =
// sqrt(a^2 - 4 b) > 0, and its slope there is x r.
//
// Wunderlich & Pehle, EventProp, Sci. Rep. 11, 12829 (2021); Goeltz et al., Fast &
// Deep, Nat. Mach. Intell. 3 (2021), for the closed form at this ratio.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <vector>

using Options = std::map<std::string, std::string>;

template <class Real>
struct Event {
  Real time;
  int source;
};

// Sorts events by time. Few events by counting how many are earlier than each: all
// pairs, but vectorized and without the mispredicted branches of a sort.
template <class Real>
class Sorter {
 public:
  void operator()(std::vector<Event<Real>>& events) {
    const int size = int(events.size());
    if (size > 256) {
      std::sort(events.begin(), events.end(), [](const auto& one, const auto& other) {
        return one.time < other.time;
      });
      return;
    }
    time.resize(size);
    rank.assign(size, 0);
    sorted.resize(size);
    for (int n = 0; n < size; n++) time[n] = events[n].time;
    const Real* __restrict t = time.data();
    int* __restrict r = rank.data();
    for (int m = 0; m < size; m++) {
      const Real mine = t[m];
      for (int n = 0; n < m; n++) r[n] += t[n] > mine;
      for (int n = m + 1; n < size; n++) r[n] += t[n] >= mine;  // Ties by position.
    }
    for (int n = 0; n < size; n++) sorted[r[n]] = events[n];
    events.swap(sorted);
  }

 private:
  std::vector<Real> time;
  std::vector<int> rank;
  std::vector<Event<Real>> sorted;
};

// A layer and what it remembers of the latest sample.
template <class Real>
struct Layer {
  int inputs, neurons;
  std::vector<Real> kernel, gradient;  // [inputs][neurons]; gradient adds up
  std::vector<Real> time;              // of each neuron's spike, if it fired
  std::vector<int> cause;              // latest event before that spike, -1: silent

  std::vector<Real> grad_time;   // of the loss, by `time`; set before backward()
  std::vector<Real> grad_event;  // of the loss, by the time of each event

  Layer(int inputs, int neurons)
      : inputs(inputs), neurons(neurons), kernel(inputs * neurons),
        gradient(inputs * neurons), time(neurons), cause(neurons), grad_time(neurons),
        grad_event(inputs), decay(inputs + 1), a(neurons), b(neurons), x(neurons),
        rising(neurons), e(neurons) {}

  // Simulates; `events` are sorted by time, one per source at most.
  void forward(const std::vector<Event<Real>>& events) {
    const int count = int(events.size()), size = neurons;
    decay[0] = 0;
    for (int k = 1; k < count; k++)
      decay[k] = std::exp(events[k - 1].time - events[k].time);
    decay[count] = 0;

    std::fill(a.begin(), a.end(), Real(0));
    std::fill(b.begin(), b.end(), Real(0));
    std::fill(cause.begin(), cause.end(), -1);
    seen = 0;
    for (int fired = 0; seen < count && fired < size; seen++)
      fired += receive(size, seen, decay[seen], decay[seen + 1],
                       &kernel[events[seen].source * size], a.data(), b.data(),
                       x.data(), rising.data(), cause.data());
    for (int n = 0; n < size; n++) time[n] = -std::log(cause[n] >= 0 ? x[n] : Real(1));
    for (int n = 0; n < size; n++)
      if (cause[n] >= 0) time[n] += events[cause[n]].time;
  }

  // Adds to `gradient` and, if asked, sets `grad_event`, from `grad_time`.
  template <bool with_events>
  void backward(const std::vector<Event<Real>>& events) {
    const int size = neurons;
    Real *__restrict mu = grad_time.data(), *__restrict pe = e.data();
    const Real *__restrict px = x.data(), *__restrict pr = rising.data();
    const int* __restrict ps = cause.data();
    for (int n = 0; n < size; n++) {
      mu[n] = ps[n] >= 0 ? mu[n] / (px[n] * pr[n]) : Real(0);
      pe[n] = 0;
    }
    for (int k = seen - 1; k >= 0; k--) {
      const int row = events[k].source * size;
      const Real* __restrict w = &kernel[row];
      Real* __restrict g = &gradient[row];
      const Real d = decay[k + 1];
      Real pull = 0;
      for (int n = 0; n < size; n++) {
        // exp of minus the time from this event to the neuron's spike, 0 if before.
        const Real to_spike = ps[n] == k ? px[n] : pe[n] * d;
        pe[n] = to_spike;
        g[n] -= mu[n] * (to_spike - to_spike * to_spike);
        if (with_events)
          pull += mu[n] * w[n] * (2 * to_spike * to_spike - to_spike);
      }
      if (with_events) grad_event[k] = pull;
    }
  }

  int seen = 0;  // events after which all neurons had fired, or all events

 private:
  // One event: advances a and b, and finds who fires before the next one. Returns how
  // many. Selections instead of branches, so that the compiler vectorizes the loop.
  static int receive(int size, int event, Real d, Real next, const Real* __restrict w,
                     Real* __restrict a, Real* __restrict b, Real* __restrict x,
                     Real* __restrict rising, int* __restrict cause) {
    int fired = 0;
    for (int n = 0; n < size; n++) {
      a[n] = a[n] * d + w[n];
      b[n] = b[n] * (d * d) + w[n];
      const Real r = std::sqrt(std::max(a[n] * a[n] - 4 * b[n], Real(0)));
      const Real top = a[n] + r, bottom = 2 * b[n];  // x = top / bottom in (next, 1]
      const int hit =
          (r > 0) & (top <= bottom) & (top > bottom * next) & (cause[n] < 0);
      x[n] = hit ? top / bottom : x[n];
      rising[n] = hit ? r : rising[n];
      cause[n] = hit ? event : cause[n];
      fired += hit;
    }
    return fired;
  }

  std::vector<Real> decay;         // from the event before to each event; 0 at the ends
  std::vector<Real> a, b;          // see the top of the file
  std::vector<Real> x, rising, e;  // x and r at the spike; a running exponential
};

template <class Real>
struct Loss {
  Real tau, t_silent;  // in units of tau_mem
};

template <class Real>
struct Network {
  Layer<Real> hidden, output;
  Loss<Real> loss;
  std::vector<Event<Real>> events, spikes;  // inputs and hidden spikes, sorted
  Sorter<Real> sort;

  Network(int inputs, int neurons, int outputs, Loss<Real> loss)
      : hidden(inputs, neurons), output(neurons, outputs), loss(loss) {}

  void forward(const Real* times) {
    events.resize(hidden.inputs);
    for (int i = 0; i < hidden.inputs; i++) events[i] = {times[i], i};
    sort(events);
    hidden.forward(events);
    spikes.resize(hidden.neurons);
    int count = 0;  // Without a branch, which would be unpredictable.
    for (int n = 0; n < hidden.neurons; n++) {
      spikes[count] = {hidden.time[n], n};
      count += hidden.cause[n] >= 0;
    }
    spikes.resize(count);
    sort(spikes);
    output.forward(spikes);
  }

  // First-spike time of an output, `t_silent` if there is none before.
  Real heard(int n) const {
    return output.cause[n] >= 0 ? std::min(output.time[n], loss.t_silent)
                                : loss.t_silent;
  }

  int predict(const Real* times) {
    forward(times);
    int best = 0;
    for (int n = 1; n < output.neurons; n++)
      if (heard(n) < heard(best)) best = n;
    return best;
  }

  // Returns the cross entropy of the softmax over -time / tau; adds its gradient.
  Real learn(const Real* times, int label) {
    forward(times);
    Real first = heard(0), sum = 0;
    for (int n = 1; n < output.neurons; n++) first = std::min(first, heard(n));
    for (int n = 0; n < output.neurons; n++)
      sum += output.grad_time[n] = std::exp((first - heard(n)) / loss.tau);
    const Real value = (heard(label) - first) / loss.tau + std::log(sum);
    for (int n = 0; n < output.neurons; n++) {
      const Real grad = ((n == label) - output.grad_time[n] / sum) / loss.tau;
      output.grad_time[n] = heard(n) < loss.t_silent ? grad : Real(0);
    }
    output.template backward<true>(spikes);
    std::fill(hidden.grad_time.begin(), hidden.grad_time.end(), Real(0));
    for (int k = 0; k < output.seen; k++)
      hidden.grad_time[spikes[k].source] = output.grad_event[k];
    hidden.template backward<false>(events);
    return value;
  }

  void clear() {
    for (Layer<Real>* layer : {&hidden, &output})
      std::fill(layer->gradient.begin(), layer->gradient.end(), Real(0));
  }
};

template <class Real>
struct Optimizer {
  const bool adam;
  explicit Optimizer(bool adam) : adam(adam) {}

  void update(Network<Real>& network, int batch) {
    step++;
    Layer<Real>* layers[2] = {&network.hidden, &network.output};
    for (int l = 0; l < 2; l++) update(*layers[l], m[l], v[l], Real(1) / batch);
  }

 private:
  static constexpr Real rate = Real(1e-5);  // The network stays what it is.
  int step = 0;
  std::vector<Real> m[2], v[2];

  void update(Layer<Real>& layer, std::vector<Real>& m, std::vector<Real>& v,
              Real scale) {
    const size_t size = layer.kernel.size();
    Real* __restrict w = layer.kernel.data();
    const Real* __restrict g = layer.gradient.data();
    if (!adam) {
      for (size_t i = 0; i < size; i++) w[i] -= rate * scale * g[i];
      return;
    }
    m.resize(size);
    v.resize(size);
    Real *__restrict pm = m.data(), *__restrict pv = v.data();
    const Real one = 1 / (1 - std::pow(Real(0.9), Real(step)));
    const Real two = 1 / (1 - std::pow(Real(0.999), Real(step)));
    for (size_t i = 0; i < size; i++) {
      const Real grad = scale * g[i];
      pm[i] = Real(0.9) * pm[i] + Real(0.1) * grad;
      pv[i] = Real(0.999) * pv[i] + Real(0.001) * grad * grad;
      w[i] -= rate * (pm[i] * one) / (std::sqrt(pv[i] * two) + Real(1e-8));
    }
  }
};

// Kernels, times in seconds and labels, drawn at random or read from a file of doubles:
// hidden kernel, output kernel, times [examples][inputs], labels [examples].
struct Problem {
  int inputs, hidden, outputs;
  std::vector<double> kernels[2], times;
  std::vector<int> labels;

  Problem(int inputs, int hidden, int outputs, int examples)
      : inputs(inputs), hidden(hidden), outputs(outputs) {
    std::mt19937 random(0);
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform(0, 10e-3);
    const auto draw = [&](int rows, int columns, double total, double spread) {
      std::vector<double> kernel(rows * columns);
      for (double& w : kernel)
        w = total / rows + spread / std::sqrt(rows) * normal(random);
      return kernel;
    };
    kernels[0] = draw(inputs, hidden, 15.0, 3.6);
    kernels[1] = draw(hidden, outputs, 60.0, 8.8);
    times.resize(examples * inputs);
    for (double& t : times) t = uniform(random);
    labels.resize(examples);
    for (int& label : labels) label = int(random() % outputs);
  }

  void read(const std::string& path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    const long total = long(file.tellg()) / long(sizeof(double));
    const long weights = long(inputs + outputs) * hidden;
    if (!file || total <= weights || (total - weights) % (inputs + 1) != 0) {
      std::fprintf(stderr, "%s does not hold a %d-%d-%d problem.\n", path.c_str(),
                   inputs, hidden, outputs);
      std::exit(2);
    }
    const long examples = (total - weights) / (inputs + 1);
    file.seekg(0);
    const auto take = [&](std::vector<double>& into, long count) {
      into.resize(count);
      file.read(reinterpret_cast<char*>(into.data()), count * long(sizeof(double)));
    };
    std::vector<double> read_labels;
    take(kernels[0], long(inputs) * hidden);
    take(kernels[1], long(hidden) * outputs);
    take(times, examples * inputs);
    take(read_labels, examples);
    labels.assign(read_labels.begin(), read_labels.end());
  }
};

double number(const Options& options, const char* name) {
  return std::strtod(options.at(name).c_str(), nullptr);
}

template <class Real>
struct Run {
  Problem problem;
  Network<Real> network;
  Real per_second;  // from seconds to units of tau_mem
  int batch, position = 0;
  std::vector<Real> times;

  Run(const Options& options, const Problem& problem)
      : problem(problem),
        network(problem.inputs, problem.hidden, problem.outputs,
                {Real(number(options, "tau") / number(options, "tau-mem")),
                 Real(number(options, "t-silent") / number(options, "tau-mem"))}),
        per_second(Real(1 / number(options, "tau-mem"))),
        batch(int(number(options, "batch"))), times(problem.inputs) {
    network.hidden.kernel.assign(problem.kernels[0].begin(), problem.kernels[0].end());
    network.output.kernel.assign(problem.kernels[1].begin(), problem.kernels[1].end());
  }

  // Encodes one example: spike times in the simulation's own unit.
  const Real* encode(int example) {
    const double* from = &problem.times[size_t(example) * problem.inputs];
    for (int i = 0; i < problem.inputs; i++) times[i] = Real(from[i]) * per_second;
    return times.data();
  }

  int next() {
    const int example = position;
    position = (position + 1) % int(problem.labels.size());
    return example;
  }

  // The summed loss of a batch; its gradient is left in the network.
  double gradient() {
    network.clear();
    double total = 0;
    for (int n = 0; n < batch; n++) {
      const int example = next();
      total += double(network.learn(encode(example), problem.labels[example]));
    }
    return total;
  }

  // Samples per second of `work`, which is one batch, for about `seconds`.
  template <class Work>
  double rate(double seconds, Work work) {
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    double samples = 0, elapsed = 0;
    while (elapsed < seconds) {
      for (int n = 0; n < 8; n++) work();
      samples += 8.0 * batch;
      elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    }
    return samples / elapsed;
  }
};

// Largest difference from fourth-order central differences, relative to the largest
// derivative of the layer.
double check(const Options& options, const Problem& problem) {
  Run<double> run(options, problem);
  const auto loss = [&] {
    run.position = 0;
    return run.gradient();
  };
  loss();
  double worst = 0;
  for (Layer<double>* layer : {&run.network.hidden, &run.network.output}) {
    loss();
    const std::vector<double> gradient = layer->gradient;
    double largest = 0, off = 0;
    for (double g : gradient) largest = std::max(largest, std::fabs(g));
    for (size_t i = 0; i < gradient.size(); i++) {
      const double keep = layer->kernel[i], h = 1e-5;
      const auto at = [&](double shift) {
        layer->kernel[i] = keep + shift;
        const double value = loss();
        layer->kernel[i] = keep;
        return value;
      };
      const double slope =
          (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
      off = std::max(off, std::fabs(slope - gradient[i]));
    }
    worst = std::max(worst, off / largest);
  }
  return worst;
}

template <class Real>
void measure(const Options& options, const Problem& problem) {
  Run<Real> run(options, problem);
  if (!options.at("gradient").empty()) {
    run.gradient();
    std::ofstream file(options.at("gradient"), std::ios::binary);
    for (const Layer<Real>* layer : {&run.network.hidden, &run.network.output})
      for (const Real g : layer->gradient) {
        const double value = double(g) / run.batch;  // of the mean loss
        file.write(reinterpret_cast<const char*>(&value), sizeof value);
      }
    run.position = 0;
  }
  double spikes = 0;
  for (int n = 0; n < run.batch; n++) {
    run.network.forward(run.encode(run.next()));
    spikes += double(run.network.spikes.size()) / run.batch;
  }
  Optimizer<Real> optimizer(options.at("optimizer") == "adam");
  const double seconds = number(options, "seconds");
  std::vector<double> train, infer;
  long chosen = 0;  // Printed, so that inference cannot be optimized away.
  for (int round = 0; round < int(number(options, "rounds")); round++) {
    train.push_back(run.rate(seconds, [&] {
      run.gradient();
      optimizer.update(run.network, run.batch);
    }));
    infer.push_back(run.rate(seconds, [&] {
      for (int n = 0; n < run.batch; n++)
        chosen += run.network.predict(run.encode(run.next()));
    }));
  }
  const auto median = [](std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values.empty() ? 0 : values[values.size() / 2];
  };
  std::printf("\"train_samples_per_s\": %.0f, \"infer_samples_per_s\": %.0f, "
              "\"hidden_spikes\": %.4f, \"predictions\": %ld}\n",
              median(train), median(infer), spikes, chosen);
}

int main(int count, char** arguments) {
  Options options = {
      {"inputs", "5"},      {"hidden", "120"},     {"outputs", "3"},
      {"batch", "64"},      {"optimizer", "adam"}, {"precision", "float"},
      {"seconds", "0.5"},   {"rounds", "5"},       {"tau-mem", "10e-3"},
      {"tau", "1e-3"},      {"t-silent", "50e-3"}, {"problem", ""},
      {"gradient", ""},     {"check", ""},
  };
  for (int n = 1; n < count; n++) {
    const std::string name = std::string(arguments[n]).substr(2);
    if (options.find(name) == options.end() || (name != "check" && n + 1 == count)) {
      std::fprintf(stderr, "%s is no option, or lacks its value.\n", arguments[n]);
      return 2;
    }
    options[name] = name == "check" ? "yes" : arguments[++n];
  }
  const auto whole = [&](const char* name) { return int(number(options, name)); };
  Problem problem(whole("inputs"), whole("hidden"), whole("outputs"), 4096);
  if (!options["problem"].empty()) problem.read(options["problem"]);
  std::printf("{");
  if (!options["check"].empty()) {
    const double error = check(options, problem);
    std::printf("\"gradient_error\": %.2e, ", error);
    if (!(error < 1e-6)) {
      std::fprintf(stderr, "gradient differs from central differences: %g\n", error);
      return 1;
    }
  }
  if (options["precision"] == "double")
    measure<double>(options, problem);
  else
    measure<float>(options, problem);
}
