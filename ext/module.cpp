// wsss_nb._lattice: numpy in, numpy out. Arguments are checked here; what is below may trust them.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "filter.h"

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
            bool finite = true;
            Team::run(T, [&](Team& team, int t) {
                if (t == 0) filter.prepare(lattice_, channels, team.size());
                team.barrier();
                const bool ok = filter.run(team, lattice_, in, to, lattice_.N, reverse);
                if (t == 0) finite = ok;
            });
            if (!finite) throw std::invalid_argument("values: not all values are finite");
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

}  // namespace

PYBIND11_MODULE(_lattice, m) {
    m.doc() = "Permutohedral lattice: bilateral filter, dense energy, fully connected CRF";
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
    m.def("release_memory", &Pool::release, "Give the blocks kept for the next call back to the system");
    m.attr("kernels") = kernels().name;
}
