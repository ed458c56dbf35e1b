// wsss_nb._lattice: numpy in, numpy out. Arguments are checked here; what is below may trust them.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "crf.h"
#include "energy.h"
#include "refine.h"

namespace py = pybind11;
using namespace lattice;

namespace {

[[noreturn]] void bad(const std::string& what) { throw py::value_error(what); }
using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

std::string shape_of(const py::array& a) {
    std::string s = "(";
    for (py::ssize_t i = 0; i < a.ndim(); ++i) s += (i ? "," : "") + std::to_string(a.shape(i));
    return s + (a.ndim() == 1 ? ",)" : ")");
}

// A float array of `ndim` axes as float32 without gaps; copied only where it is not one already.
Floats floats(const py::object& x, const char* name, int ndim, const char* form) {
    if (!py::isinstance<py::array>(x)) bad(std::string(name) + ": expected a numpy array of floats " + form + ", not " + std::string(py::str(py::type::of(x).attr("__name__"))));
    py::array a = py::reinterpret_borrow<py::array>(x);
    if (a.dtype().kind() != 'f') bad(std::string(name) + ": expected floats, got " + std::string(py::str(a.dtype())));
    if (a.ndim() != ndim) bad(std::string(name) + ": expected shape " + form + ", got " + shape_of(a));
    if (a.size() == 0) bad(std::string(name) + ": is empty, shape " + shape_of(a));
    Floats f = Floats::ensure(a);
    if (!f) { PyErr_Clear(); bad(std::string(name) + ": cannot be read as float32"); }
    return f;
}
int thread_count(py::ssize_t n) {
    if (n < 1) bad("threads: must be at least 1, got " + std::to_string(n));
    return int(std::min<py::ssize_t>(n, 64));
}
int padding(int pad_to) {
    if (pad_to != 0 && pad_to != 1 && pad_to != 2 && pad_to != 4 && pad_to != 8) bad("pad_to: must be 0 (none), 1, 2, 4 or 8, got " + std::to_string(pad_to));
    return pad_to;
}
float sigma(double s, const char* name) {
    if (!(float(s) > 0) || !std::isfinite(float(s))) bad(std::string(name) + ": must be a positive number, got " + std::to_string(s));
    return float(s);
}

// Results lie in blocks of the pool, so that large ones do not come on fresh pages each time.
py::array_t<float> result(std::vector<py::ssize_t> shape) {
    size_t n = 1;
    for (auto s : shape) n *= size_t(s);
    struct Owner { Buffer<float> block; };
    auto owner = std::make_unique<Owner>();
    owner->block.reset(n);
    float* data = owner->block.data();
    py::capsule base(owner.get(), [](void* p) { delete static_cast<Owner*>(p); });
    owner.release();
    return py::array_t<float>(std::move(shape), data, base);
}
template <class F> auto without_gil(F&& f) {
    py::gil_scoped_release release;
    return f();
}

class PyLattice {
  public:
    PyLattice(const py::object& features, int pad_to, py::ssize_t threads) {
        Floats f = floats(features, "features", 2, "(N,d)");
        const int T = thread_count(threads), pad = padding(pad_to);
        const size_t N = f.shape(0), d = f.shape(1);
        if (d > size_t(max_dim)) bad("features: at most 8 dimensions, got " + std::to_string(d));
        const float* x = f.data();
        without_gil([&] {
            std::vector<Range> ranges(d, Range{0, 0});
            for (size_t n = 0; n < N; ++n)
                for (size_t j = 0; j < d; ++j) {
                    const float v = x[n * d + j];
                    if (!std::isfinite(v)) throw std::invalid_argument("features: not all values are finite");
                    ranges[j] = {std::min(ranges[j].low, v), std::max(ranges[j].high, v)};
                }
            lattice_.build(int(d), N, ranges.data(), [=](size_t n0, size_t n1, float* out, size_t stride) {
                for (size_t n = n0; n < n1; ++n) for (size_t j = 0; j < d; ++j) out[j * stride + n - n0] = x[n * d + j];
            }, pad, T);
            lattice_.finish();
        });
    }
    py::array filter(const py::object& values, bool reverse, py::ssize_t threads) const {
        Floats v = floats(values, "values", 2, "(C,N)");
        const int T = thread_count(threads);
        if (size_t(v.shape(1)) != lattice_.N) bad("values: expected shape (C," + std::to_string(lattice_.N) + "), got " + shape_of(v));
        auto out = result({v.shape(0), v.shape(1)});
        const float* in = v.data();
        float* to = out.mutable_data();
        const int channels = int(v.shape(0));
        without_gil([&] {
            Filter filter;
            Phase ready;
            Team::run(T, [&](Team& team) {
                ready.once(team, [&] { filter.prepare(lattice_, channels, team.size()); });
                filter.planes(team, lattice_, in, to, lattice_.N, reverse, lattice_.weights.data(), lattice_.weights.data());
            });
            if (!filter.finite()) throw std::invalid_argument("values: not all values are finite");
        });
        return out;
    }
    py::array vertex_keys() const {
        py::array_t<int32_t> out({py::ssize_t(lattice_.M), py::ssize_t(lattice_.d)});
        for (size_t v = 0; v < lattice_.M; ++v) lattice_.key(v, out.mutable_data() + v * lattice_.d);
        return out;
    }
    template <class T> py::array per_point(const Buffer<T>& blocks) const {
        const size_t D = lattice_.d + 1;
        py::array_t<T> out({py::ssize_t(lattice_.N), py::ssize_t(D)});
        T* to = out.mutable_data();
        for (size_t n = 0; n < lattice_.N; ++n) for (size_t p = 0; p < D; ++p) *to++ = blocks[n / 8 * D * 8 + p * 8 + n % 8];
        return out;
    }
    py::array offset() const { return per_point(lattice_.ids); }
    py::array barycentric() const { return per_point(lattice_.weights); }
    py::array neighbours() const {
        const size_t D = lattice_.d + 1, M = lattice_.M;
        py::array_t<int32_t> out({py::ssize_t(D), py::ssize_t(M), py::ssize_t(2)});
        int32_t* to = out.mutable_data();
        std::fill(to, to + D * M * 2, -1);
        for (size_t j = 0; j < D; ++j, to += 2 * M) {
            const Buffer<int32_t>& chain = lattice_.chains[j];
            for (size_t i = 0; i + 1 < chain.size(); ++i) {
                if (chain[i] < 0) continue;
                const int32_t u = chain[i], v = chain[i + 1] < 0 ? ~chain[i + 1] : chain[i + 1];
                to[2 * u] = v, to[2 * v + 1] = u;
            }
        }
        return out;
    }
    size_t num_points() const { return lattice_.N; }
    size_t num_vertices() const { return lattice_.M; }
    int dim() const { return lattice_.d; }

  private:
    Lattice lattice_;
};

py::array filter_images(const py::object& images, const py::object& values, double sigma_rgb, double sigma_xy, int pad_to, py::ssize_t threads) {
    Floats x = floats(images, "images", 4, "(B,3,H,W)"), v = floats(values, "values", 4, "(B,K,H,W)");
    const int T = thread_count(threads), pad = padding(pad_to);
    const float rgb = sigma(sigma_rgb, "sigma_rgb"), xy = sigma(sigma_xy, "sigma_xy");
    if (x.shape(1) != 3) bad("images: expected shape (B,3,H,W), got " + shape_of(x));
    if (v.shape(0) != x.shape(0) || v.shape(2) != x.shape(2) || v.shape(3) != x.shape(3)) bad("values: shape " + shape_of(v) + " does not fit images " + shape_of(x));
    auto out = result({v.shape(0), v.shape(1), v.shape(2), v.shape(3)});
    const float *in = x.data(), *from = v.data();
    float* to = out.mutable_data();
    without_gil([&] { bilateral_filter(in, from, to, v.shape(0), v.shape(1), v.shape(2), v.shape(3), rgb, xy, pad, T); });
    return out;
}

py::tuple energy_of(const py::object& images, const py::object& probs, const py::object& rois, const py::object& unlabelled, double sigma_rgb, double sigma_xy, int pad_to,
                    py::ssize_t threads) {
    Floats x = floats(images, "images", 4, "(B,3,h,w)"), p = floats(probs, "probs", 4, "(B,K,h,w)"), r = floats(rois, "rois", 3, "(B,h,w)");
    const int T = thread_count(threads), pad = padding(pad_to);
    const float rgb = sigma(sigma_rgb, "sigma_rgb"), xy = sigma(sigma_xy, "sigma_xy");
    const py::ssize_t B = p.shape(0), K = p.shape(1), h = p.shape(2), w = p.shape(3);
    if (x.shape(1) != 3 || x.shape(0) != B || x.shape(2) != h || x.shape(3) != w) bad("images: shape " + shape_of(x) + " does not fit probs " + shape_of(p));
    if (r.shape(0) != B || r.shape(1) != h || r.shape(2) != w) bad("rois: shape " + shape_of(r) + " does not fit probs " + shape_of(p));
    py::array_t<uint8_t, py::array::c_style | py::array::forcecast> free;
    if (!unlabelled.is_none()) {
        if (!py::isinstance<py::array>(unlabelled)) bad("unlabelled: expected a numpy array of uint8 or bool (B,h,w), or None");
        py::array a = py::reinterpret_borrow<py::array>(unlabelled);
        if (!(a.dtype().kind() == 'b' || a.dtype().is(py::dtype::of<uint8_t>()))) bad("unlabelled: expected uint8 or bool, got " + std::string(py::str(a.dtype())));
        if (a.ndim() != 3 || a.shape(0) != B || a.shape(1) != h || a.shape(2) != w) bad("unlabelled: shape " + shape_of(a) + " does not fit probs " + shape_of(p));
        free = decltype(free)::ensure(a);
    }
    auto out = result({B, K, h, w});
    const float *in = x.data(), *from = p.data(), *roi = r.data();
    const uint8_t* mask = unlabelled.is_none() ? nullptr : free.data();
    float* to = out.mutable_data();
    const double value = without_gil([&] { return energy(in, from, roi, mask, to, B, K, h, w, rgb, xy, pad, T); });
    return py::make_tuple(value, out);
}

Floats even_logits(const py::object& logits) {
    Floats x = floats(logits, "logits", 4, "(B,K,H,W)");
    if (x.shape(2) % 2 || x.shape(3) % 2) bad("logits: height and width must be even, got shape " + shape_of(x));
    return x;
}
py::array halved(const py::object& logits, py::ssize_t threads) {
    Floats x = even_logits(logits);
    const int T = thread_count(threads);
    auto out = result({x.shape(0), x.shape(1), x.shape(2) / 2, x.shape(3) / 2});
    const float* from = x.data();
    float* to = out.mutable_data();
    without_gil([&] { halve_softmax(from, nullptr, nullptr, 1, to, x.shape(0), x.shape(1), x.shape(2), x.shape(3), T); });
    return out;
}
py::array halved_backward(const py::object& logits, const py::object& grad, const py::object& rois, double scale, py::ssize_t threads) {
    Floats x = even_logits(logits), g = floats(grad, "grad", 4, "(B,K,H/2,W/2)"), r;
    const int T = thread_count(threads);
    if (g.shape(0) != x.shape(0) || g.shape(1) != x.shape(1) || g.shape(2) != x.shape(2) / 2 || g.shape(3) != x.shape(3) / 2)
        bad("grad: shape " + shape_of(g) + " does not fit logits " + shape_of(x));
    if (!rois.is_none()) {
        r = floats(rois, "rois", 3, "(B,H/2,W/2)");
        if (r.shape(0) != g.shape(0) || r.shape(1) != g.shape(2) || r.shape(2) != g.shape(3)) bad("rois: shape " + shape_of(r) + " does not fit grad " + shape_of(g));
    }
    if (!std::isfinite(float(scale))) bad("scale: must be finite");
    auto out = result({x.shape(0), x.shape(1), x.shape(2), x.shape(3)});
    const float *from = x.data(), *of = g.data(), *roi = rois.is_none() ? nullptr : r.data();
    float* to = out.mutable_data();
    without_gil([&] { halve_softmax(from, of, roi, float(scale), to, x.shape(0), x.shape(1), x.shape(2), x.shape(3), T); });
    return out;
}

py::array refined(const py::object& images, const py::object& masks, const std::vector<int>& distances, int rounds, double sharpness,
                  const std::vector<float>& closeness, double variation, py::ssize_t threads) {
    Floats x = floats(images, "images", 4, "(B,3,H,W)"), m = floats(masks, "masks", 4, "(B,C,H,W)");
    const int T = thread_count(threads);
    if (x.shape(1) != 3) bad("images: expected shape (B,3,H,W), got " + shape_of(x));
    if (m.shape(0) != x.shape(0) || m.shape(2) != x.shape(2) || m.shape(3) != x.shape(3)) bad("masks: shape " + shape_of(m) + " does not fit images " + shape_of(x));
    if (m.shape(1) > 65535) bad("masks: too many channels");
    if (distances.empty() || distances.size() > 64) bad("distances: expected 1 to 64, got " + std::to_string(distances.size()));
    for (int d : distances) if (d < 0) bad("distances: must not be negative, got " + std::to_string(d));
    if (rounds < 0 || rounds > 10000) bad("rounds: must be 0 to 10000, got " + std::to_string(rounds));
    if (closeness.size() != 8 * distances.size()) bad("closeness: expected " + std::to_string(8 * distances.size()) + " numbers, got " + std::to_string(closeness.size()));
    for (float c : closeness) if (!std::isfinite(c)) bad("closeness: not all values are finite");
    if (!std::isfinite(float(variation))) bad("variation: must be finite");
    const Refinement how{distances, rounds, sigma(sharpness, "sharpness"), closeness, float(variation)};
    auto out = result({m.shape(0), m.shape(1), m.shape(2), m.shape(3)});
    const float *of = x.data(), *from = m.data();
    float* to = out.mutable_data();
    without_gil([&] { refine(of, from, to, x.shape(0), m.shape(1), x.shape(2), x.shape(3), how, T); });
    return out;
}

// A dict's entry as `count` positive numbers; one number stands for all.
void sigmas(const py::dict& d, const char* key, int count, float* out) {
    if (!d.contains(key)) bad(std::string("terms: \"") + key + "\" is missing");
    py::object x = d[key];
    try {
        if (py::isinstance<py::float_>(x) || py::isinstance<py::int_>(x)) for (int i = 0; i < count; ++i) out[i] = sigma(x.cast<double>(), key);
        else {
            auto v = x.cast<std::vector<double>>();
            if (int(v.size()) != count) bad(std::string(key) + ": expected " + std::to_string(count) + " numbers, got " + std::to_string(v.size()));
            for (int i = 0; i < count; ++i) out[i] = sigma(v[i], key);
        }
    } catch (const py::cast_error&) { bad(std::string(key) + ": expected a number or " + std::to_string(count) + " numbers"); }
}

class PyCrf {
  public:
    PyCrf(py::ssize_t height, py::ssize_t width, const py::sequence& terms, const py::object& image, int pad_to, py::ssize_t threads) {
        const int T = thread_count(threads), pad = padding(pad_to);
        if (height < 1 || width < 1) bad("height, width: must be at least 1, got " + std::to_string(height) + ", " + std::to_string(width));
        if (height > (1 << 30) / width) bad("height, width: too many pixels");
        crf_.height = size_t(height), crf_.width = size_t(width);
        py::array_t<uint8_t, py::array::c_style> pixels;
        if (!image.is_none()) {
            if (!py::isinstance<py::array>(image)) bad("image: expected a numpy array of uint8 (H,W,3)");
            py::array a = py::reinterpret_borrow<py::array>(image);
            if (!a.dtype().is(py::dtype::of<uint8_t>())) bad("image: expected uint8, got " + std::string(py::str(a.dtype())));
            if (a.ndim() != 3 || a.shape(0) != height || a.shape(1) != width || a.shape(2) != 3)
                bad("image: expected shape (" + std::to_string(height) + "," + std::to_string(width) + ",3), got " + shape_of(a));
            pixels = py::array_t<uint8_t, py::array::c_style>::ensure(a);
        }
        std::vector<Floats> kept;
        for (const py::handle& h : terms) {
            if (!py::isinstance<py::dict>(h)) bad("terms: expected dicts");
            py::dict d = py::reinterpret_borrow<py::dict>(h);
            Term term;
            const std::string kind = d.contains("kind") ? std::string(py::str(d["kind"])) : "";
            if (kind == "gaussian") sigmas(d, "sxy", 2, term.sxy);
            else if (kind == "bilateral") {
                if (image.is_none()) bad("image: a bilateral term needs one");
                term.kind = Term::bilateral, term.d = 5;
                sigmas(d, "sxy", 2, term.sxy), sigmas(d, "srgb", 3, term.srgb);
            } else if (kind == "features") {
                if (!d.contains("features")) bad("terms: \"features\" is missing");
                kept.push_back(floats(d["features"], "features", 2, "(N,d)"));
                const Floats& f = kept.back();
                if (f.shape(0) != height * width) bad("features: expected shape (" + std::to_string(height * width) + ",d), got " + shape_of(f));
                if (f.shape(1) > max_dim) bad("features: at most 8 dimensions, got " + std::to_string(f.shape(1)));
                term.kind = Term::features, term.d = int(f.shape(1)), term.points = f.data();
            } else bad("terms: kind must be gaussian, bilateral or features, got \"" + kind + "\"");
            if (d.contains("normalization")) {
                try { term.normalization = d["normalization"].cast<int>(); }
                catch (const py::cast_error&) { term.normalization = -1; }
                if (term.normalization < 0 || term.normalization > 3) bad("normalization: must be 0, 1, 2 or 3");
            }
            if (!d.contains("compat")) bad("terms: \"compat\" is missing");
            py::object compat = d["compat"];
            py::array c;
            try { c = py::array::ensure(compat); } catch (...) { }
            if (!c || std::string("fiu").find(c.dtype().kind()) == std::string::npos) { PyErr_Clear(); bad("compat: expected a number, (K,) or (K,K)"); }
            Floats values = Floats::ensure(c);
            if (c.ndim() > 2 || c.size() == 0 || (c.ndim() == 2 && c.shape(0) != c.shape(1))) bad("compat: expected a number, (K,) or (K,K), got shape " + shape_of(c));
            term.form = c.ndim() == 0 ? Term::potts : c.ndim() == 1 ? Term::diagonal : Term::full;
            term.compat.assign(values.data(), values.data() + values.size());
            for (float x : term.compat) if (!std::isfinite(x)) bad("compat: not all values are finite");
            if (c.ndim()) {
                if (channels_ && channels_ != c.shape(0)) bad("compat: terms disagree about the number of classes");
                channels_ = c.shape(0);
            }
            crf_.terms.push_back(std::move(term));
        }
        const uint8_t* rgb = image.is_none() ? nullptr : pixels.data();
        without_gil([&] { crf_.build(rgb, pad, T); });
    }
    py::array infer(const py::object& unary, py::ssize_t iterations, py::ssize_t threads, bool labels) const {
        Floats u = planes(unary, "unary");
        const int T = thread_count(threads), K = int(u.shape(0));
        if (iterations < 0 || iterations > 100000) bad("iters: must be 0 to 100000, got " + std::to_string(iterations));
        if (channels_ && channels_ != K) bad("unary: " + std::to_string(K) + " classes, but compat has " + std::to_string(channels_));
        const float* from = u.data();
        py::array out;
        float* q = nullptr;
        int32_t* l = nullptr;
        if (labels) { py::array_t<int32_t> a(py::ssize_t(crf_.N)); l = a.mutable_data(); out = a; }
        else { auto a = result({py::ssize_t(K), py::ssize_t(crf_.N)}); q = a.mutable_data(); out = a; }
        if (!without_gil([&] { return crf_.infer(from, K, int(iterations), T, q, l); })) bad("unary: not all values are finite");
        return out;
    }
    py::array apply(py::ssize_t term, const py::object& q, bool transpose, py::ssize_t threads) const {
        Floats x = planes(q, "q");
        const int T = thread_count(threads), K = int(x.shape(0));
        if (term < 0 || term >= py::ssize_t(crf_.terms.size())) bad("term: there are " + std::to_string(crf_.terms.size()) + ", got " + std::to_string(term));
        auto out = result({x.shape(0), x.shape(1)});
        const float* from = x.data();
        float* to = out.mutable_data();
        if (!without_gil([&] { return crf_.apply(size_t(term), from, K, transpose, T, to); })) bad("q: not all values are finite");
        return out;
    }
    std::vector<size_t> num_vertices() const {
        std::vector<size_t> m;
        for (const Term& t : crf_.terms) m.push_back(t.kernel->lattice.M);
        return m;
    }

  private:
    Crf crf_;
    py::ssize_t channels_ = 0;  // 0: any number
    Floats planes(const py::object& x, const char* name) const {
        Floats f = floats(x, name, 2, "(K,H*W)");
        if (size_t(f.shape(1)) != crf_.N) bad(std::string(name) + ": expected shape (K," + std::to_string(crf_.N) + "), got " + shape_of(f));
        if (f.shape(0) > 65535) bad(std::string(name) + ": too many classes");
        return f;
    }
};

using Bytes = py::array_t<uint8_t, py::array::c_style>;

// An image as bytes without gaps; copied only where it is not one already.
Bytes bytes(const py::object& x) {
    if (!py::isinstance<py::array>(x)) bad("image: expected a numpy array of uint8 (H,W,3)");
    py::array a = py::reinterpret_borrow<py::array>(x);
    if (!a.dtype().is(py::dtype::of<uint8_t>())) bad("image: expected uint8, got " + std::string(py::str(a.dtype())));
    if (a.ndim() != 3 || a.shape(2) != 3) bad("image: expected shape (H,W,3), got " + shape_of(a));
    return Bytes(a);
}
template <class F> Bytes changed(const Bytes& image, F&& f) {
    Bytes out({image.shape(0), image.shape(1), image.shape(2)});
    const uint8_t* from = image.data();
    uint8_t* to = out.mutable_data();
    without_gil([&] { f(from, size_t(image.size()) / 3, to); });
    return out;
}
Bytes turned(const py::object& image, int turn) {
    if (turn < 0 || turn > 255) bad("turn: must be 0 to 255, got " + std::to_string(turn));
    return changed(bytes(image), [&](const uint8_t* from, size_t n, uint8_t* to) { kernels().turn_hue(from, n, turn, to); });
}
Bytes faded(const py::object& image, double factor, std::optional<int> level) {
    if (!std::isfinite(float(factor))) bad("factor: must be a finite number, got " + std::to_string(factor));
    if (level && (*level < 0 || *level > 255)) bad("level: must be 0 to 255, got " + std::to_string(*level));
    return changed(bytes(image), [&](const uint8_t* from, size_t n, uint8_t* to) { kernels().fade(from, n, float(level.value_or(-1)), float(factor), to); });
}
double grey_mean(const py::object& image) {
    Bytes x = bytes(image);
    if (x.size() == 0) bad("image: is empty, shape " + shape_of(x));
    const uint8_t* rgb = x.data();
    const size_t n = size_t(x.size()) / 3;
    return double(without_gil([&] { return kernels().grey_sum(rgb, n); })) / double(n);
}

}  // namespace

PYBIND11_MODULE(_lattice, m) {
    m.doc() = "Permutohedral lattice: bilateral filter, dense energy, fully connected CRF; pixel-adaptive refinement; changes of colour";
    py::class_<PyLattice>(m, "Lattice", "The lattice of a set of points")
        .def(py::init<const py::object&, int, py::ssize_t>(), py::arg("features"), py::arg("pad_to") = 4, py::arg("threads") = 1)
        .def_property_readonly("num_points", &PyLattice::num_points)
        .def_property_readonly("num_vertices", &PyLattice::num_vertices)
        .def_property_readonly("dim", &PyLattice::dim)
        .def("filter", &PyLattice::filter, py::arg("values"), py::arg("reverse") = false, py::arg("threads") = 1)
        .def("vertex_keys", &PyLattice::vertex_keys)
        .def("offset", &PyLattice::offset)
        .def("barycentric", &PyLattice::barycentric)
        .def("neighbours", &PyLattice::neighbours);
    m.def("bilateral_filter", &filter_images, py::arg("images"), py::arg("values"), py::arg("sigma_rgb"), py::arg("sigma_xy"), py::arg("pad_to") = 4, py::arg("threads") = 1);
    m.def("energy", &energy_of, py::arg("images"), py::arg("probs"), py::arg("rois"), py::arg("unlabelled"), py::arg("sigma_rgb"), py::arg("sigma_xy"),
          py::arg("pad_to") = 4, py::arg("threads") = 1);
    m.def("halve_softmax", &halved, py::arg("logits"), py::arg("threads") = 1);
    m.def("halve_softmax_backward", &halved_backward, py::arg("logits"), py::arg("grad"), py::arg("rois") = py::none(), py::arg("scale") = 1., py::arg("threads") = 1);
    m.def("refine", &refined, "The masks after weighted averages over neighbours of like colour", py::arg("images"), py::arg("masks"), py::arg("distances"), py::arg("rounds"),
          py::arg("sharpness"), py::arg("closeness"), py::arg("variation") = 0., py::arg("threads") = 1);
    py::class_<PyCrf>(m, "CRF", "A fully connected CRF: its lattices and normalisations")
        .def(py::init<py::ssize_t, py::ssize_t, const py::sequence&, const py::object&, int, py::ssize_t>(), py::arg("height"), py::arg("width"), py::arg("terms"),
             py::arg("image") = py::none(), py::arg("pad_to") = 4, py::arg("threads") = 1)
        .def("infer", &PyCrf::infer, py::arg("unary"), py::arg("iters"), py::arg("threads") = 1, py::arg("labels") = false)
        .def("apply", &PyCrf::apply, py::arg("term"), py::arg("q"), py::arg("transpose") = false, py::arg("threads") = 1)
        .def_property_readonly("num_vertices", &PyCrf::num_vertices);
    m.def("turn_hue", &turned, "The image with its hues turned by so many 256ths", py::arg("image"), py::arg("turn"));
    m.def("fade", &faded, "The image moved towards a grey level, or away from it; without a level, each pixel's own grey", py::arg("image"), py::arg("factor"), py::arg("level") = py::none());
    m.def("grey_mean", &grey_mean, "The mean of the image's greys", py::arg("image"));
    m.def("release_memory", [] { Remembered::forget(); Pool::release(); }, "Forget the Gaussian kernels of the last sizes and give the blocks kept for the next call back to the system");
    m.def("held_bytes", &Pool::held_bytes, "Bytes of the blocks kept for the next call");
    m.attr("kernels") = kernels().name;
}
